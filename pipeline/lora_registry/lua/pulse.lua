-- Read how a stage is doing; writes nothing.
-- requires: clock, due
-- KEYS  1 turns of the stage
-- ARGV  1 key prefix  2 stage
-- Returns {due, leased, slots, us since the oldest due work became due, us since the last claim (-1: never)}.
local ledger, now = ARGV[1] .. ':ledger', now_us()
local due, oldest = 0, now
for _, namespace in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  local key = due_key(ledger, ARGV[2], namespace)
  due = due + redis.call('ZCOUNT', key, '-inf', now)
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if #first > 0 then
    oldest = math.min(oldest, tonumber(first[2]))
  end
end
local claimed_at = redis.call('HGET', ledger .. ':wake:' .. ARGV[2], 'claimed_at')
return {
  due,
  redis.call('ZCOUNT', ledger .. ':leases:' .. ARGV[2], now, '+inf'),
  redis.call('ZCOUNT', ledger .. ':slots:' .. ARGV[2], now, '+inf'),
  now - oldest,
  claimed_at and now - tonumber(claimed_at) or -1,
}
