-- Give a claimed registration back because its files are not all there yet: due again after a pause, at no cost, or
-- rejected when its time is up.
-- requires: clock, due, finish
-- KEYS  1 registration
-- ARGV  1 key prefix  2 registration id  3 stage  4 epoch  5 owner  6 what is missing (JSON object without braces)
--       7 first pause in us  8 longest pause in us  9 deadline in us after it was dispatched or re-driven
--       10 findings to reject with  11 retention in s
-- Returns {'deferred', pause in us}, {'rejected'} or {'lost'}.
-- Atomic: it is due again or ended exactly when this owner still holds the lease. No attempt is counted. The last look
-- is at the deadline, so what is there by then is found.
local prefix, id, stage = ARGV[1], ARGV[2], ARGV[3]
local ledger, now = prefix .. ':ledger', now_us()
local held = redis.call('HMGET', KEYS[1], 'stage', 'epoch', 'owner', 'namespace', 'dispatched_at', 'attempts')
if held[1] ~= stage or held[2] ~= ARGV[4] or held[3] ~= ARGV[5] then
  return {'lost'}
end

local deadline = tonumber(held[5] or now) + tonumber(ARGV[9])
remember(prefix, id, string.format('{"stage":"%s","attempt":%d,"at_us":%.0f,%s}', stage, held[6], now, ARGV[6]))
if now >= deadline then
  finish(prefix, id, stage, held[4], 'rejected', now, ARGV[11], 'findings', ARGV[10])
  return {'rejected'}
end
local deferrals = redis.call('HINCRBY', KEYS[1], 'deferrals', 1)
local pause = math.min(tonumber(ARGV[8]), tonumber(ARGV[7]) * 2 ^ math.min(deferrals - 1, 40), deadline - now)
redis.call('HSET', KEYS[1], 'owner', '', 'claimed_with', 0)
redis.call('ZREM', ledger .. ':leases:' .. stage, id)
move_due(ledger, stage, held[4], id, now + pause)
return {'deferred', pause}
