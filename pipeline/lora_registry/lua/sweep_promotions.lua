-- Say whether to wake a worker for open promotions whose promoter has shown no sign of life.
-- requires: clock, moves
-- KEYS  1 when somebody was woken for them
-- ARGV  1 key prefix  2 patience in us
-- Returns the number of wake-ups to send, 0 or 1. A wake-up that was not answered for the patience counts as lost; the
-- patience doubles with each resend (up to 64-fold), so that they do not pile up where no worker runs.
local now = now_us()
if #lost_promotions(ARGV[1], now) == 0 then
  return 0
end
local state = redis.call('HMGET', KEYS[1], 'sent_at', 'resent')
local resent = tonumber(state[2]) or 0
if state[1] and now - tonumber(state[1]) < tonumber(ARGV[2]) * 2 ^ resent then
  return 0
end
redis.call('HSET', KEYS[1], 'sent_at', now, 'resent', state[1] and math.min(6, resent + 1) or 0)
redis.call('EXPIRE', KEYS[1], math.ceil(tonumber(ARGV[2]) * 128 / 1000000))
return 1
