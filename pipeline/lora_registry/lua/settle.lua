-- Take a pending origin off the list once its event is in the inbox (or was refused there), and tell who waits for it.
-- KEYS  1 pending origins  2 origin  3 deliveries that wait for it
-- ARGV  1 key prefix  2 name of the origin  3 which run of it this is, from 1  4 content that was accepted
--       5 registration id, '' if it was refused  6 why it was refused  7 retention in s
-- Returns 1, or 0 if another dispatcher was faster.
-- Atomic: what came in between stays pending. Runs twice to the same end.
local held = redis.call('HMGET', KEYS[2], 'runs', 'content')
if tonumber(held[1] or '0') + 1 ~= tonumber(ARGV[3]) then
  return 0
end
redis.call('HSET', KEYS[2], 'runs', ARGV[3], 'last_content', ARGV[4], 'last_registration', ARGV[5])
for _, reference in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
  local delivery = ARGV[1] .. ':hooks:delivery:' .. reference
  if redis.call('EXISTS', delivery) == 1 then
    if ARGV[5] == '' then
      redis.call('HSET', delivery, 'refusal', ARGV[6])
    else
      redis.call('HSET', delivery, 'registration:' .. ARGV[2], ARGV[5])
    end
  end
end
if held[2] == ARGV[4] then
  redis.call('HDEL', KEYS[2], 'event', 'content', 'first_at')
  redis.call('ZREM', KEYS[1], ARGV[2])
  redis.call('DEL', KEYS[3])
  redis.call('EXPIRE', KEYS[2], ARGV[7])
end
return 1
