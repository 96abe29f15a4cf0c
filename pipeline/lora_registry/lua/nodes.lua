-- Read what nodes said. It writes nothing, and takes its keys as arguments: whoever calls it may only read them.
-- requires: clock
-- ARGV  1 prefix of the keys of nodes  2 what: 'nodes' (3: node id, for all if left out), 'digests',
--       'acks' (3…: served names; of nodes that live only), 'acks_of' (3: node id)
-- Returns {info, artifacts, since, expires, '1' if it lives}, … or {digests (JSON)}, … or
-- {node id, served name, acknowledgement}, …
-- Atomic: who lives and what it said are of one moment.
local prefix, what, wanted = ARGV[1], ARGV[2], ARGV[3]
local found = {}
if what == 'acks_of' then
  local said = redis.call('HGETALL', prefix .. ':acks:' .. wanted)
  for at = 1, #said, 2 do
    found[#found + 1] = {wanted, said[at], said[at + 1]}
  end
  return found
end

local now = now_us()
local since = what == 'acks' and string.format('(%.0f', now) or '-inf'
local known = redis.call('ZRANGE', prefix .. ':alive', since, '+inf', 'BYSCORE', 'WITHSCORES')
for at = 1, #known, 2 do
  local id, expires = known[at], known[at + 1]
  if what == 'acks' then
    local said = #ARGV > 2 and redis.call('HMGET', prefix .. ':acks:' .. id, unpack(ARGV, 3)) or {}
    for place = 1, #ARGV - 2 do
      if said[place] then
        found[#found + 1] = {id, ARGV[place + 2], said[place]}
      end
    end
  elseif what == 'digests' then
    found[#found + 1] = {redis.call('HGET', prefix .. ':node:' .. id, 'digests') or '[]'}
  elseif not wanted or wanted == id then
    local field = redis.call('HMGET', prefix .. ':node:' .. id, 'info', 'artifacts', 'since')
    if field[1] then
      found[#found + 1] = {field[1], field[2], field[3], expires, tonumber(expires) > now and '1' or '0'}
    end
  end
end
return found
