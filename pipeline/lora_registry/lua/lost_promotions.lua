-- The open promotions whose promoter has shown no sign of life, for a worker that looks at them because it was woken.
-- requires: clock, moves
-- KEYS  1 when somebody was woken for them
-- ARGV  1 key prefix
-- Returns now in us, then a list: for each namespace.name@alias, what is stored of it.
redis.call('DEL', KEYS[1])
local now = now_us()
return {string.format('%.0f', now), lost_promotions(ARGV[1], now)}
