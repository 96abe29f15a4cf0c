-- Admit this server: from now on its scripts may issue ids, numbers and sequences.
-- requires: clock
-- KEYS  1 server  2 last id issued
-- ARGV  1 id gap  2 id floor  3 number gap  4 number floor (floors: an operator's, 0 for none)  5 key prefix
--       6 '1' if an operator says that the server counts as it is  7 last generation that the asker knows, '' for none
-- Returns {1 if a new server was admitted else 0, generation}, or {0, ''} if the server is empty, the asker knew one that
-- was not, and no operator has said that it counts.
-- A server that was empty has `began`, its first generation, until an operator says that it counts: subscribers that know
-- an earlier generation go on with what they know.
-- Atomic: ids and numbers are past everything that the lost writes may have issued before any is issued again. (The
-- counter of each adapter is raised by the offset when it is next used: see accept.lua and allocate.lua.)
local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
local known = redis.call('HMGET', KEYS[1], 'run_id', 'generation')
local id_floor, number_floor = tonumber(ARGV[2]), tonumber(ARGV[4])
if not known[1] and ARGV[6] ~= '1' and ARGV[7] ~= '' then
  return {0, ''}
end
if ARGV[6] == '1' then
  redis.call('HDEL', KEYS[1], 'began')
end
if known[1] == run_id and id_floor == 0 and number_floor == 0 then
  return {0, known[2]}
end

local generation = string.format('%.0f-%s', math.floor(now_us() / 1000), string.sub(run_id, 1, 8))
local id, raise = tonumber(redis.call('GET', KEYS[2]) or '0'), number_floor
if known[1] then
  id, raise = id + tonumber(ARGV[1]), math.max(tonumber(ARGV[3]), number_floor)
end
redis.call('SET', KEYS[2], string.format('%d', math.min(2147483647, math.max(id, id_floor))))
redis.call('HSET', KEYS[1], 'run_id', run_id, 'generation', generation)
if not known[1] and ARGV[6] ~= '1' then
  redis.call('HSET', KEYS[1], 'began', generation)
end
redis.call('HINCRBY', KEYS[1], 'offset', raise)
for _, base in ipairs(redis.call('HKEYS', ARGV[5] .. ':catalog:sequences')) do
  redis.call('PUBLISH', ARGV[5] .. ':announce:' .. base, '')
end
return {1, generation}
