-- Shared: an alias's history, newest first, the last 100 moves. `by` is text of a user's. Whoever moves an alias ends the
-- promotion that was open for it: `ledger:promotions` has those that nobody has decided yet (open_promotions.py), each as
-- `<lease until us> <token> <version> <before or 0> <failures since us> <deadline us> <who>`.
local function remember_move(prefix, alias, from, to, mode, how, by, now)
  redis.call('HDEL', prefix .. ':ledger:promotions', alias)
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

-- Whether the promotion of this token is open: then nobody has moved the alias since it did.
local function is_open(prefix, alias, token)
  local stored = redis.call('HGET', prefix .. ':ledger:promotions', alias)
  return stored ~= false and string.match(stored, '^%d+ (%S+)') == token
end

-- The version to which somebody promotes the alias, and who; nothing if no promotion is open for it.
local function promoted_to(prefix, alias)
  local stored = redis.call('HGET', prefix .. ':ledger:promotions', alias)
  if stored then
    return string.match(stored, '^%d+ %S+ (%d+) %d+ %d+ %d+ (.*)$')
  end
end

-- How the alias stood before its last move, if it pointed at this version then: `follow` or `pinned`. The last move of one
-- whose promotion is open is that promotion's.
local function mode_before(prefix, alias, version)
  local stored = redis.call('LRANGE', prefix .. ':catalog:moves:' .. alias, 1, 1)[1]
  local move = stored and cjson.decode(stored)
  return move and move.to == tonumber(version) and move.mode or 'pinned'
end

-- The open promotions whose promoter has shown no sign of life: alias, stored, alias, stored, …
local function lost_promotions(prefix, now)
  local lost, stored = {}, redis.call('HGETALL', prefix .. ':ledger:promotions')
  for at = 1, #stored, 2 do
    if tonumber(string.match(stored[at + 1], '^(%d+)')) <= now then
      lost[#lost + 1] = stored[at]
      lost[#lost + 1] = stored[at + 1]
    end
  end
  return lost
end

-- Version number → list of the adapter's aliases that go back to it if their open promotions come to nothing.
local function aliases_by_earlier_version(prefix, adapter)
  local found, stored = {}, redis.call('HGETALL', prefix .. ':ledger:promotions')
  for at = 1, #stored, 2 do
    if string.sub(stored[at], 1, #adapter + 1) == adapter .. '@' then
      local version = string.match(stored[at + 1], '^%d+ %S+ %d+ (%d+)')
      found[version] = found[version] or {}
      table.insert(found[version], string.sub(stored[at], #adapter + 2))
    end
  end
  return found
end
