-- Get or allocate the `lora_int_id` of a claimed registration, once for each admission of a server.
-- requires: admitted
-- KEYS  1 last id issued  2 registration
-- ARGV  1 epoch  2 owner  3 key of the server
-- Returns {'ok', id, version number}, {'lost'}, {'exhausted'} or {'not-admitted'}.
-- Atomic: an id is issued once and belongs to one registration. A registration that was numbered under an earlier
-- admission gets a fresh id and a fresh number: the old ones may have been announced and then forgotten.
local generation, offset = admitted(ARGV[3])
if not generation then
  return {'not-admitted'}
end
local field = redis.call('HMGET', KEYS[2], 'epoch', 'owner', 'lora_int_id', 'offset', 'version')
if field[1] ~= ARGV[1] or field[2] ~= ARGV[2] then
  return {'lost'}
end
local passed = offset - tonumber(field[4])
if field[3] and passed == 0 then
  return {'ok', tonumber(field[3]), tonumber(field[5])}
end

local id = redis.call('INCR', KEYS[1])
if id > 2147483647 then
  redis.call('DECR', KEYS[1])
  return {'exhausted'}
end
local version = tonumber(field[5]) + passed
redis.call('HSET', KEYS[2], 'lora_int_id', id, 'version', version, 'offset', offset)
return {'ok', id, version}
