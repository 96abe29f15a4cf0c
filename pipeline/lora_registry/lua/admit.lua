-- Admit this server: from now on its scripts may issue ids, numbers and sequences.
-- requires: clock
-- KEYS  1 server  2 last id issued
-- ARGV  1 id gap  2 least id to go on from (an operator's floor, 0 for none)  3 key prefix
-- Returns {1 if a new server was admitted else 0, generation}.
-- Atomic: the id counter is past everything that the lost writes may have issued before anything is issued again.
-- (Number counters are raised when they are next used: see accept.lua and allocate.lua.)
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local known = redis.call('HMGET', KEYS[1], 'run_id', 'generation')
local floor = tonumber(ARGV[2])
if known[1] == run_id and floor == 0 then
  return {0, known[2]}
end

local generation = string.format('%.0f-%s', math.floor(now_us() / 1000), string.sub(run_id, 1, 8))
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
if known[1] then
  last = last + tonumber(ARGV[1])
end
redis.call('SET', KEYS[2], string.format('%d', math.min(2147483647, math.max(last, floor))))
redis.call('HSET', KEYS[1], 'run_id', run_id, 'generation', generation)
redis.call('HINCRBY', KEYS[1], 'admission', 1)
for _, base in ipairs(redis.call('HKEYS', ARGV[3] .. ':catalog:sequences')) do
  redis.call('PUBLISH', ARGV[3] .. ':announce:' .. base, '')
end
return {1, generation}
