-- Hand on what is due in an optional stage and is not, or no longer, to be worked on there.
-- requires: clock, due, wake
-- KEYS  1 turns of the stage
-- ARGV  1 key prefix  2 stage  3 next stage  4 its batch size  5 most registrations of a namespace to look at
--       6… base models whose registrations stay
-- Returns the number of wake-ups to send to the next stage.
-- Atomic: what is leased is left alone; what is due moves whole, its attempts forgotten, and is in one stage at a time.
local prefix, stage = ARGV[1], ARGV[2]
local ledger, now, stays = prefix .. ':ledger', now_us(), {}
for each = 6, #ARGV do
  stays[ARGV[each]] = true
end

for _, namespace in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)) do
  local key = due_key(ledger, stage, namespace)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, ARGV[5])) do
    local registration = ledger .. ':registration:' .. id
    local fields = redis.call('HMGET', registration, 'stage', 'base_model')
    if fields[1] ~= stage then
      remove_due(ledger, stage, namespace, id)
    elseif not stays[fields[2]] then
      remove_due(ledger, stage, namespace, id)
      redis.call('HSET', registration, 'stage', ARGV[3], 'owner', '', 'attempts', 0, 'alone', 0, 'claimed_with', 0,
        'suspect', '', 'due_at', now)
      add_due(ledger, ARGV[3], namespace, id, now)
    end
  end
  put_off_turn(ledger, stage, namespace)
end
return wake(ledger, ARGV[3], tonumber(ARGV[4]), now)
