-- Take one accepted event off the stream into the ledger, due in the first stage (or ended as rejected).
-- requires: clock, due, wake, finish
-- KEYS  1 event stream  2 accepted event  3 registration
-- ARGV  1 key prefix  2 consumer group  3 stream entry id  4 registration id  5 first stage, '' to reject
--       6 its batch size  7 retention in s  8 namespace  9… field, value pairs of the registration
-- Returns the number of wake-ups to send to the first stage.
-- Atomic: the registration is due exactly when the event is gone. Runs twice to the same end.
local prefix, id, stage, namespace = ARGV[1], ARGV[4], ARGV[5], ARGV[8]
local ledger, now, missing = prefix .. ':ledger', now_us(), 0

if redis.call('EXISTS', KEYS[2]) == 1 and redis.call('EXISTS', KEYS[3]) == 0 then
  redis.call('HSET', KEYS[3], 'id', id, 'state', 'received', 'stage', stage, 'outcome', '', 'owner', '', 'epoch', 0,
    'attempts', 0, 'alone', 0, 'claimed_with', 0, 'due_at', now, 'dispatched_at', now, unpack(ARGV, 9))
  if stage == '' then
    finish(prefix, id, 'none', namespace, 'rejected', now, ARGV[7])
  else
    add_due(ledger, stage, namespace, id, now)
    missing = wake(ledger, stage, tonumber(ARGV[6]), now)
  end
end
redis.call('DEL', KEYS[2])
redis.call('XACK', KEYS[1], ARGV[2], ARGV[3])
redis.call('XDEL', KEYS[1], ARGV[3])
return missing
