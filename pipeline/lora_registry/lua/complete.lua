-- Hand a claimed registration on to the next stage, or end it: compare-and-set on stage, epoch and owner.
-- requires: clock, due, wake, finish
-- KEYS  1 registration
-- ARGV  1 key prefix  2 registration id  3 stage  4 epoch  5 owner  6 next stage, '' to end  7 its batch size
--       8 state or outcome that is reached  9 '1' if older pending registrations of the adapter are superseded now
--       10 retention in s  11… field, value pairs to set
-- Returns {'done', wake-ups to send to the next stage} or {'lost'} or {'superseded', 0}.
-- Atomic: the result is stored, and the next stage due, exactly when this owner still holds the lease.
local prefix, id, stage = ARGV[1], ARGV[2], ARGV[3]
local ledger, now = prefix .. ':ledger', now_us()
local held = redis.call('HMGET', KEYS[1], 'stage', 'epoch', 'owner', 'namespace', 'name', 'order', 'due_at')
if held[1] ~= stage or held[2] ~= ARGV[4] or held[3] ~= ARGV[5] then
  return {'lost'}
end
local namespace, adapter, order = held[4], held[4] .. '.' .. held[5], tonumber(held[6])

local overtaken_by = tonumber(redis.call('HGET', ledger .. ':superseded', adapter) or '0')
if order < overtaken_by then
  finish(prefix, id, stage, namespace, 'superseded', now, ARGV[10])
  return {'superseded', 0}
end
if ARGV[9] == '1' then
  redis.call('HSET', ledger .. ':superseded', adapter, order)
end

local took_us = now - tonumber(held[7])
if ARGV[6] == '' then
  finish(prefix, id, stage, namespace, ARGV[8], now, ARGV[10], stage .. '_us', took_us, unpack(ARGV, 11))
  return {'done', 0}
end
remove_due(ledger, stage, namespace, id)
redis.call('HSET', KEYS[1], 'state', ARGV[8], 'stage', ARGV[6], 'owner', '', 'attempts', 0, 'alone', 0,
  'claimed_with', 0, 'due_at', now, stage .. '_us', took_us, unpack(ARGV, 11))
add_due(ledger, ARGV[6], namespace, id, now)
redis.call('PUBLISH', prefix .. ':state:' .. id, ARGV[8])
return {'done', wake(ledger, ARGV[6], tonumber(ARGV[7]), now)}
