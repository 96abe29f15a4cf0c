-- Take a canary engine for one claimed registration, or give the registration back for a moment: the engine is another's.
-- requires: clock, due
-- KEYS  1 holder of the engine  2 registration
-- ARGV  1 key prefix  2 registration id  3 stage  4 epoch  5 owner  6 pause in us if the engine is another's
-- Returns 'held', 'busy' or 'lost'.
-- Atomic: an engine has one holder at a time. It holds the engine for as long as it holds its lease, so nobody has to let
-- go: a result that is handed on, a failure and a dead worker all end the lease. Waiting costs no attempt.
local prefix, id, stage = ARGV[1], ARGV[2], ARGV[3]
local ledger, now = prefix .. ':ledger', now_us()
local mine = redis.call('HMGET', KEYS[2], 'stage', 'epoch', 'owner', 'namespace')
if mine[1] ~= stage or mine[2] ~= ARGV[4] or mine[3] ~= ARGV[5] then
  return 'lost'
end

local other, epoch = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%d+)$')
if other and other ~= id then
  local lease = redis.call('ZSCORE', ledger .. ':leases:' .. stage, other)
  if lease and tonumber(lease) > now and redis.call('HGET', ledger .. ':registration:' .. other, 'epoch') == epoch then
    redis.call('HSET', KEYS[2], 'owner', '', 'claimed_with', 0)
    redis.call('ZREM', ledger .. ':leases:' .. stage, id)
    move_due(ledger, stage, mine[4], id, now + tonumber(ARGV[6]))
    return 'busy'
  end
end
redis.call('SET', KEYS[1], id .. ' ' .. ARGV[4], 'EX', 86400)
return 'held'
