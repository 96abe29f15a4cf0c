-- Say that the promoter of an open promotion lives, or that the promotion is decided.
-- requires: clock, moves
-- KEYS  1 open promotions
-- ARGV  1 key prefix  2 namespace.name@alias  3 token  4 for how many us from now the promoter counts as alive; 0: decided
-- Returns 1, or 0 when the promotion is no longer open.
-- Atomic: of several that decide a promotion, one does.
if not is_open(ARGV[1], ARGV[2], ARGV[3]) then
  return 0
end
if ARGV[4] == '0' then
  return redis.call('HDEL', KEYS[1], ARGV[2])
end
local rest = string.match(redis.call('HGET', KEYS[1], ARGV[2]), '^%d+ (.*)$')
redis.call('HSET', KEYS[1], ARGV[2], string.format('%.0f %s', now_us() + ARGV[4], rest))
return 1
