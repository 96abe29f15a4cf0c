-- Note that a hook refused a delivery: nothing of what it said is kept but the reason.
-- requires: clock
-- KEYS  1 refusals of the hook
-- ARGV  1 code  2 reason  3 refusals kept  4 retention in s
-- Returns nothing. Not the deliveries' own list: whoever knows no secret must not push them out of it.
redis.call('LPUSH', KEYS[1], cjson.encode({at = now_us(), code = ARGV[1], reason = ARGV[2]}))
redis.call('LTRIM', KEYS[1], 0, tonumber(ARGV[3]) - 1)
redis.call('EXPIRE', KEYS[1], ARGV[4])
