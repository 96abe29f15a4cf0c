-- A node lives: note until when, and what it is and holds if that changed.
-- requires: clock
-- KEYS  1 nodes  2 node  3 acknowledgements of the node  4 those of them that it retired
-- ARGV  1 node id  2 after how many us without a heartbeat it is dead  3 retention of a dead node in s
--       4 fingerprint of what follows; at will: 5 what it is (JSON)  6 digests it holds (JSON)  7 how many  8 '1' if it was
--       started
-- Returns 'ok', 'new' if the node was not known, or 'tell' if only the fingerprint was given and it is not the one known.
-- Atomic: a node that is known is known whole. While nothing changes this is one read and one write; the ends of the
-- keys are moved when a quarter of the retention is over, or something changed.
local now, retention_s = now_us(), tonumber(ARGV[3])
local known = redis.call('HMGET', KEYS[2], 'fingerprint', 'kept_at')
local kept_at = tonumber(known[2])
if not ARGV[5] and known[1] ~= ARGV[4] then
  return 'tell'
end
if ARGV[8] == '1' then
  redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
end
if ARGV[5] then
  redis.call('HSET', KEYS[2], 'fingerprint', ARGV[4], 'info', ARGV[5], 'digests', ARGV[6], 'artifacts', ARGV[7])
  redis.call('HSETNX', KEYS[2], 'since', string.format('%.0f', now))
end
redis.call('ZADD', KEYS[1], now + tonumber(ARGV[2]), ARGV[1])
if ARGV[5] or not kept_at or now - kept_at > retention_s * 250000 then
  redis.call('HSET', KEYS[2], 'kept_at', string.format('%.0f', now))
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - retention_s * 1000000)
  for _, key in ipairs(KEYS) do
    redis.call('EXPIRE', key, retention_s)
  end
end
return known[1] and 'ok' or 'new'
