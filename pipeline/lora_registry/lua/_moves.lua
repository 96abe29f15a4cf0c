-- Shared: an alias's history, newest first, the last 100 moves. `by` is text of a user's.
local function remember_move(prefix, alias, from, to, mode, how, by, now)
  local key = prefix .. ':catalog:moves:' .. alias
  redis.call('LPUSH', key, string.format('{"from":%s,"to":%s,"mode":"%s","how":"%s","at_us":%.0f,"by":%s}',
    from or 'null', to or 'null', mode, how, now, cjson.encode(by)))
  redis.call('LTRIM', key, 0, 99)
end
