-- Change labels of a published version.
-- requires: clock, admitted, announce
-- KEYS  1 versions of the base
-- ARGV  1 key prefix  2 base model  3 field of the version  4 labels to set (JSON)  5 most labels  6 log length
--       7… labels to drop
-- Returns {'changed'|'unchanged', version record (JSON)}, {'unknown'}, {'too-many'} or {'not-admitted'}.
-- Atomic: of two that change different labels at once, both do.
local generation = admitted(ARGV[1] .. ':server')
if not generation then
  return {'not-admitted'}
end
local stored = redis.call('HGET', KEYS[1], ARGV[3])
if not stored then
  return {'unknown'}
end
local record, changed = cjson.decode(stored), false
for key, value in pairs(cjson.decode(ARGV[4])) do
  changed = changed or record.labels[key] ~= value
  record.labels[key] = value
end
for at = 7, #ARGV do
  changed = changed or record.labels[ARGV[at]] ~= nil
  record.labels[ARGV[at]] = nil
end
if not changed then
  return {'unchanged', stored}
end
local count = 0
for _ in pairs(record.labels) do
  count = count + 1
end
if count > tonumber(ARGV[5]) then
  return {'too-many'}
end
local text = cjson.encode(record)
redis.call('HSET', KEYS[1], ARGV[3], text)
announce(ARGV[1], generation, ARGV[2], 'version.labels-changed', record.served_name, text, now_us(), ARGV[6])
return {'changed', text}
