-- Make a dead-lettered registration due again in the stage where it died, with all its attempts and its time for an upload before it.
-- requires: clock, due
-- KEYS  1 registration  2 dead letters
-- ARGV  1 key prefix  2 registration id
-- Returns 1, or 0 when it is no dead letter. The dispatcher's sweep sends the wake-up.
if redis.call('ZREM', KEYS[2], ARGV[2]) == 0 or redis.call('EXISTS', KEYS[1]) == 0 then
  return 0
end
local prefix, now = ARGV[1], now_us()
local field = redis.call('HMGET', KEYS[1], 'dead_stage', 'namespace', 'idempotency')
redis.call('PERSIST', KEYS[1])
redis.call('PERSIST', prefix .. ':ledger:history:' .. ARGV[2])
redis.call('PERSIST', prefix .. ':inbox:idempotency:' .. field[2] .. ':' .. field[3])
redis.call('HSET', KEYS[1], 'outcome', '', 'state', 'redriven', 'stage', field[1], 'attempts', 0, 'alone', 1,
  'claimed_with', 0, 'owner', '', 'due_at', now, 'dispatched_at', now)
redis.call('HDEL', KEYS[1], 'finished_at', 'dead_stage')
add_due(prefix .. ':ledger', field[1], field[2], ARGV[2], now)
return 1
