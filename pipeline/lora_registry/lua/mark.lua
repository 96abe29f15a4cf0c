-- Mark artifacts that nobody was found to refer to, and unmark those that somebody refers to again.
-- requires: clock, admitted
-- KEYS  1 pins  2 marked  3 removing
-- ARGV  1 key prefix  2 after how many us a claim counts as abandoned  3 number of digests that are referred to
--       4… those digests, then the digests that nobody was found to refer to
-- Returns {now in us, for each of the latter the us when it was marked, or 0 if a registration pins it}, or {} when no
-- dispatcher has admitted this server.
-- Atomic: a digest is marked only while no registration pins it, so a mark that is still there later means that no
-- registration has pinned it since (pin.lua and publish.lua take marks away).
if not admitted(ARGV[1] .. ':server') then
  return {}
end
local now, pinned = now_us(), {}
local pins = redis.call('HGETALL', KEYS[1])
for place = 1, #pins, 2 do
  if redis.call('EXISTS', ARGV[1] .. ':ledger:registration:' .. pins[place]) == 1 then
    pinned[pins[place + 1]] = true
  else
    redis.call('HDEL', KEYS[1], pins[place]) -- a dead letter that has expired
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now - tonumber(ARGV[2]))

local first = 4 + tonumber(ARGV[3])
for place = 4, first - 1 do
  redis.call('ZREM', KEYS[2], ARGV[place])
end
local reply = {now}
for place = first, #ARGV do
  local digest = ARGV[place]
  if pinned[digest] then
    redis.call('ZREM', KEYS[2], digest)
    reply[#reply + 1] = 0
  else
    redis.call('ZADD', KEYS[2], 'NX', now, digest)
    reply[#reply + 1] = tonumber(redis.call('ZSCORE', KEYS[2], digest))
  end
end
return reply
