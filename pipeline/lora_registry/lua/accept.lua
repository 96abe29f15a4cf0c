-- Accept an event: answer a repeated idempotency key, take the adapter's next number, store the event, queue it.
-- requires: admitted
-- KEYS  1 accepted event  2 idempotency key  3 number of the adapter  4 event stream
-- ARGV  1 registration id  2 event (JSON)  3 payload digest  4 hash of the idempotency key
--       5 most events queued  6 key of the server (not in KEYS: publishers may only read it)
-- Returns {'accepted'|'existing'|'conflict', registration id} or {'full'} or {'not-admitted'}.
-- Atomic: number, event and queue entry exist together or not at all. Runs twice to the same end.
local generation, offset = admitted(ARGV[6])
if not generation then
  return {'not-admitted'}
end

local existing = redis.call('GET', KEYS[2])
if existing then
  local id, digest = string.match(existing, '^(%S+) (%S+)$')
  return {digest == ARGV[3] and 'existing' or 'conflict', id}
end
if redis.call('XLEN', KEYS[4]) >= tonumber(ARGV[5]) then
  return {'full'}
end

-- An adapter that this server does not know may be one that it forgot: it too starts past what may have been issued.
local number = offset
local last = redis.call('GET', KEYS[3])
if last then
  local taken, taken_under = string.match(last, '^(%d+) (%d+)$')
  number = tonumber(taken) + offset - tonumber(taken_under)
end
number = number + 1

redis.call('SET', KEYS[2], ARGV[1] .. ' ' .. ARGV[3])
redis.call('SET', KEYS[3], string.format('%d %d', number, offset))
redis.call('HSET', KEYS[1], 'event', ARGV[2], 'order', number, 'offset', offset, 'idempotency', ARGV[4])
redis.call('XADD', KEYS[4], '*', 'id', ARGV[1])
return {'accepted', ARGV[1]}
