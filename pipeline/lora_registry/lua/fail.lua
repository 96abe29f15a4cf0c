-- Give a claimed registration back after a failure that may pass: due again after a backoff, or dead-lettered.
-- requires: clock, due, finish
-- KEYS  1 registration
-- ARGV  1 key prefix  2 registration id  3 stage  4 epoch  5 owner  6 error (JSON object without braces)
--       7 first backoff in us  8 longest backoff in us  9 most attempts  10 dead-letter retention in s
--       11 least delay in us (what the other side asked for)
-- Returns {'retry', delay in us}, {'dead'} or {'lost'}.
local prefix, id, stage = ARGV[1], ARGV[2], ARGV[3]
local ledger, now = prefix .. ':ledger', now_us()
local held = redis.call('HMGET', KEYS[1], 'stage', 'epoch', 'owner', 'namespace')
if held[1] ~= stage or held[2] ~= ARGV[4] or held[3] ~= ARGV[5] then
  return {'lost'}
end

local attempts = redis.call('HINCRBY', KEYS[1], 'attempts', 1)
remember(prefix, id, string.format('{"stage":"%s","attempt":%d,"at_us":%.0f,%s}', stage, attempts, now, ARGV[6]))
if attempts >= tonumber(ARGV[9]) then
  dead_letter(prefix, id, stage, held[4], now, ARGV[10])
  return {'dead'}
end
local delay = math.min(tonumber(ARGV[8]), tonumber(ARGV[7]) * 2 ^ (attempts - 1))
delay = math.max(delay, tonumber(ARGV[11]))
redis.call('HSET', KEYS[1], 'owner', '', 'claimed_with', 0)
redis.call('ZREM', ledger .. ':leases:' .. stage, id)
move_due(ledger, stage, held[4], id, now + delay)
return {'retry', delay}
