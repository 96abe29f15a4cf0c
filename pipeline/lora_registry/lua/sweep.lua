-- Look after one stage: presume wake-ups lost that nobody followed, and say how many to send.
-- requires: clock, due, wake
-- KEYS  1 turns of the stage
-- ARGV  1 key prefix  2 stage  3 batch size  4 patience in us  5 dead-letter retention in s
-- Returns the number of wake-ups to send. A wake-up counts as lost when work is due, a slot is free and none has been
-- answered for the patience, which doubles with each resend (up to 64-fold) so that busy queues do not fill up.
local prefix, stage = ARGV[1], ARGV[2]
local ledger, now = prefix .. ':ledger', now_us()
local key = ledger .. ':wake:' .. stage
redis.call('ZREMRANGEBYSCORE', ledger .. ':slots:' .. stage, '-inf', now)
redis.call('ZREMRANGEBYSCORE', ledger .. ':dead', '-inf', now - tonumber(ARGV[5]) * 1000000)

local needed, slots = wanted(ledger, stage, tonumber(ARGV[3]), now)
local busy = redis.call('ZCOUNT', ledger .. ':leases:' .. stage, now, '+inf')
if needed == 0 then
  return 0
end
local state = redis.call('HMGET', key, 'outstanding', 'sent_at', 'answered_at', 'resent')
local quiet_us = now - math.max(tonumber(state[2]) or 0, tonumber(state[3]) or 0)
local resent = tonumber(state[4]) or 0
if (tonumber(state[1]) or 0) > 0 and busy < slots and quiet_us > tonumber(ARGV[4]) * 2 ^ resent then
  redis.call('HSET', key, 'outstanding', 0, 'resent', math.min(6, resent + 1))
end
return wake(ledger, stage, tonumber(ARGV[3]), now)
