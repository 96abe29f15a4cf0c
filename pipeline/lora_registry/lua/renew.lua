-- Prolong a lease, if its owner still holds it.
-- requires: clock, due
-- KEYS  1 registration
-- ARGV  1 key prefix  2 registration id  3 stage  4 epoch  5 owner  6 lease in us
-- Returns 1, or 0 when the lease is lost.
local held = redis.call('HMGET', KEYS[1], 'stage', 'epoch', 'owner', 'namespace')
if held[1] ~= ARGV[3] or held[2] ~= ARGV[4] or held[3] ~= ARGV[5] then
  return 0
end
local ledger, until_us = ARGV[1] .. ':ledger', now_us() + tonumber(ARGV[6])
move_due(ledger, ARGV[3], held[4], ARGV[2], until_us)
redis.call('ZADD', ledger .. ':leases:' .. ARGV[3], until_us, ARGV[2])
return 1
