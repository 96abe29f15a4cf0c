-- A node acknowledges a version.
-- requires: clock
-- KEYS  1 acknowledgements of the node  2 those of them that it retired, newest first
-- ARGV  1 served name  2 state  3 code or '-'  4 reason  5 states that this one may follow: ',seen,fetched,…,'
--       6 retention in s  7 most retired versions kept  8 bell of the version
-- Returns {'ok'}, {'same'}, or {'refused', state before}.
-- Atomic: no state is said after one that it may not follow; the bell rings for each change and for nothing else.
local before = redis.call('HGET', KEYS[1], ARGV[1])
local state, rest
if before then
  state, rest = string.match(before, '^(%S+) %d+ (.*)$')
  if not string.find(ARGV[5], ',' .. state .. ',', 1, true) then
    return {'refused', state}
  end
  if state == ARGV[2] and rest == ARGV[3] .. ' ' .. ARGV[4] then
    return {'same'}
  end
end
redis.call('HSET', KEYS[1], ARGV[1], string.format('%s %.0f %s %s', ARGV[2], now_us(), ARGV[3], ARGV[4]))
if not before then
  redis.call('EXPIRE', KEYS[1], ARGV[6])
end
if ARGV[2] == 'retired' and state ~= 'retired' then
  redis.call('LPUSH', KEYS[2], ARGV[1])
  redis.call('EXPIRE', KEYS[2], ARGV[6])
  while redis.call('LLEN', KEYS[2]) > tonumber(ARGV[7]) do
    local oldest = redis.call('RPOP', KEYS[2])
    if string.find(redis.call('HGET', KEYS[1], oldest) or '', '^retired ') then
      redis.call('HDEL', KEYS[1], oldest)
    end
  end
end
redis.call('PUBLISH', ARGV[8], ARGV[2])
return {'ok'}
