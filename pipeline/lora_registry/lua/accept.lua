-- Accept an event: answer a repeated idempotency key, take the adapter's next number, store the event, queue it.
-- requires: admitted
-- KEYS  1 server  2 accepted event  3 idempotency key  4 number of the adapter  5 event stream
-- ARGV  1 registration id  2 event (JSON)  3 payload digest  4 hash of the idempotency key
--       5 most events queued  6 number gap  7 accepted at (publisher's note, unused for order)
-- Returns {'accepted'|'existing'|'conflict', registration id} or {'full'} or {'not-admitted'}.
-- Atomic: number, event and queue entry exist together or not at all. Runs twice to the same end.
local generation, admission = admitted(KEYS[1])
if not generation then
  return {'not-admitted'}
end

local existing = redis.call('GET', KEYS[3])
if existing then
  local id, digest = string.match(existing, '^(%S+) (%S+)$')
  return {digest == ARGV[3] and 'existing' or 'conflict', id}
end
if redis.call('XLEN', KEYS[5]) >= tonumber(ARGV[5]) then
  return {'full'}
end

local number = 0
local last = redis.call('GET', KEYS[4])
if last then
  local taken, taken_under = string.match(last, '^(%d+) (%d+)$')
  number = tonumber(taken) + tonumber(ARGV[6]) * (admission - tonumber(taken_under))
end
number = number + 1

redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. ARGV[3])
redis.call('SET', KEYS[4], string.format('%d %d', number, admission))
redis.call('HSET', KEYS[2], 'event', ARGV[2], 'order', number, 'admission', admission, 'idempotency', ARGV[4])
redis.call('XADD', KEYS[5], '*', 'id', ARGV[1])
return {'accepted', ARGV[1]}
