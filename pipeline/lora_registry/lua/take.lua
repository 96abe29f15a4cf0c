-- Take an artifact off the marked ones, to remove it now.
-- requires: clock, admitted
-- KEYS  1 marked  2 removing
-- ARGV  1 key prefix  2 digest  3 us at which the check began that found no reference  4 grace in us
-- Returns 1, or 0 when it was not marked before that check began, or not for the grace.
-- Atomic: it is being removed exactly when it was still marked: nobody has pinned or published it since the mark, and
-- whoever published it before was seen by the check. From now on pin.lua and publish.lua refuse it.
if not admitted(ARGV[1] .. ':server') then
  return 0
end
local marked, now = tonumber(redis.call('ZSCORE', KEYS[1], ARGV[2]) or 'inf'), now_us()
if marked > tonumber(ARGV[3]) or marked > now - tonumber(ARGV[4]) then
  return 0
end
redis.call('ZREM', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[2])
return 1
