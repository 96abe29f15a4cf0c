-- Shared: an alias's history, newest first, the last 100 moves. `by` is text of a user's.
local function remember_move(prefix, alias, from, to, mode, how, by, now)
  local key = prefix .. ':catalog:moves:' .. alias
  local kept = redis.call('LPUSH', key, string.format('{"from":%s,"to":%s,"mode":"%s","how":"%s","at_us":%.0f,"by":%s}',
    from or 'null', to or 'null', mode, how, now, cjson.encode(by)))
  if kept > 100 then
    redis.call('LTRIM', key, 0, 99)
  end
  if to and not from then
    redis.call('PERSIST', key) -- it may have been about to expire, with an alias that was removed
  end
end
