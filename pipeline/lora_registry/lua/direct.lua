-- Tell some nodes to hold a version for a while although no alias names it, or that the while is over. It is somebody's own:
-- stored is `<until in s> =<token> <node id> …`. No node's id begins so, and older readers look for ids alone; older writers
-- left the token out, and what they directed is over at its time.
-- requires: clock, admitted, announce
-- KEYS  1 versions of the base  2 directed versions of the base
-- ARGV  1 key prefix  2 base model  3 namespace  4 name  5 version  6 token  7 for how many s  8 log length
--       9… node ids; none: over, if it is this token's
-- Returns {'directed', now in us}, {'over', now in us}, {'unknown'}, {'taken', nodes, s left} or {'not-admitted'}.
-- Atomic: what is directed and what is announced are the same. Others whose while is over are cleared away. While one
-- direction of a version lasts there is no other, to the same nodes neither: its end would be the end of both. The same
-- token's may be told twice.
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
    namespace, name, version, until_s, listed), now, ARGV[8])
end
local field, over = ARGV[3] .. '.' .. ARGV[4] .. '.v' .. ARGV[5], {}
local known, is_end = redis.call('HGETALL', KEYS[2]), #ARGV < 9
local function s_left(stored)
  return tonumber(string.match(stored, '^(%d+)')) - now / 1000000
end
local function is_own(stored)
  return string.match(stored, '^%d+ =(%S+)') == ARGV[6]
end
for at = 1, #known, 2 do
  local is_this = known[at] == field
  if s_left(known[at + 1]) <= 0 and (is_end or not is_this) or is_end and is_this and is_own(known[at + 1]) then
    over[#over + 1] = known[at]
  end
end
for _, each in ipairs(over) do
  redis.call('HDEL', KEYS[2], each)
  tell(each, 0, {})
end
if is_end then
  return {'over', string.format('%.0f', now)}
end
if redis.call('HEXISTS', KEYS[1], field) == 0 then
  return {'unknown'}
end
local before = redis.call('HGET', KEYS[2], field)
if before and s_left(before) > 0 and not is_own(before) then
  return {'taken', string.match(before, '^%d+ =%S+ (.+)$') or string.match(before, '^%d+ (.+)$'), math.ceil(s_left(before))}
end
local nodes = {unpack(ARGV, 9)}
local until_s = math.ceil(now / 1000000 + tonumber(ARGV[7]))
redis.call('HSET', KEYS[2], field, string.format('%d =%s %s', until_s, ARGV[6], table.concat(nodes, ' ')))
tell(field, until_s, nodes)
return {'directed', string.format('%.0f', now)}
