-- Tell some nodes to hold a version for a while although no alias names it, or that the while is over.
-- requires: clock, admitted, announce
-- KEYS  1 versions of the base  2 directed versions of the base
-- ARGV  1 key prefix  2 base model  3 namespace  4 name  5 version  6 for how many s  7 log length  8… node ids; none: over
-- Returns {'directed', now in us}, {'over', now in us}, {'unknown'}, {'taken', nodes} or {'not-admitted'}.
-- Atomic: what is directed and what is announced are the same. Others whose while is over are cleared away. While one
-- direction of a version lasts there is no other to other nodes: its end would be the end of both.
local prefix, base, now = ARGV[1], ARGV[2], now_us()
local generation = admitted(prefix .. ':server')
if not generation then
  return {'not-admitted'}
end
local function tell(field, until_s, nodes)
  local namespace, name, version = string.match(field, '^([^.]+)%.([^.]+)%.v(%d+)$')
  local listed = #nodes > 0 and '"' .. table.concat(nodes, '","') .. '"' or ''
  local served_name = string.gsub(field, '^default%.', '')
  announce(prefix, generation, base, 'version.directed', served_name, string.format(
    '{"namespace":"%s","name":"%s","version":%s,"until_s":%d,"nodes":[%s]}',
    namespace, name, version, until_s, listed), now, ARGV[7])
end
local field, over = ARGV[3] .. '.' .. ARGV[4] .. '.v' .. ARGV[5], {}
local known = redis.call('HGETALL', KEYS[2])
for at = 1, #known, 2 do
  local is_over = tonumber(string.match(known[at + 1], '^(%d+)')) * 1000000 <= now
  if is_over and known[at] ~= field or known[at] == field and #ARGV < 8 then
    over[#over + 1] = known[at]
  end
end
for _, each in ipairs(over) do
  redis.call('HDEL', KEYS[2], each)
  tell(each, 0, {})
end
if #ARGV < 8 then
  return {'over', string.format('%.0f', now)}
end
if redis.call('HEXISTS', KEYS[1], field) == 0 then
  return {'unknown'}
end
local nodes = {unpack(ARGV, 8)}
local before_until, before_nodes = string.match(redis.call('HGET', KEYS[2], field) or '', '^(%d+) (.+)$')
if before_until and tonumber(before_until) * 1000000 > now and before_nodes ~= table.concat(nodes, ' ') then
  return {'taken', before_nodes}
end
local until_s = math.ceil(now / 1000000 + tonumber(ARGV[6]))
redis.call('HSET', KEYS[2], field, until_s .. ' ' .. table.concat(nodes, ' '))
tell(field, until_s, nodes)
return {'directed', string.format('%.0f', now)}
