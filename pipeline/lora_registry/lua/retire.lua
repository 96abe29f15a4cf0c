-- Retire one version that no alias points at or may go back to, or an adapter: its aliases, and its versions a part at a time.
-- requires: clock, admitted, announce, moves, quota, retire
-- KEYS  1 adapter  2 versions of the base  3 aliases of the base
-- ARGV  1 key prefix  2 base model  3 namespace  4 name  5 version, '' for all of them
--       6 for all: last number to retire, '' for the newest of now  7 most versions at once  8 log length
--       9 who  10 for how many s the history of a removed alias is kept
-- Returns {'retired', versions retired, last number to retire, versions left of these}, {'aliased', alias, …},
-- {'earlier', alias, …}: their open promotions may go back to it; {'unknown'} or {'not-admitted'}.
-- Atomic: nobody sees an alias whose version is retired. Runs twice to the same end.
local prefix, base, adapter, now = ARGV[1], ARGV[2], ARGV[3] .. '.' .. ARGV[4], now_us()
local generation = admitted(prefix .. ':server')
if not generation then
  return {'not-admitted'}
end
local numbers = prefix .. ':catalog:numbers:' .. adapter
local pointed_at = aliases_by_version(prefix, base, adapter)

if ARGV[5] ~= '' then
  if redis.call('HEXISTS', KEYS[2], adapter .. '.v' .. ARGV[5]) == 0 then
    local is_retired = redis.call('HEXISTS', prefix .. ':catalog:retired:' .. base, adapter .. '.v' .. ARGV[5])
    return is_retired == 1 and {'retired', 0, ARGV[5], 0} or {'unknown'}
  end
  if pointed_at[ARGV[5]] then
    return {'aliased', unpack(pointed_at[ARGV[5]])}
  end
  local earlier = aliases_by_earlier_version(prefix, adapter)[ARGV[5]]
  if earlier then
    return {'earlier', unpack(earlier)}
  end
  local retired = retire_version(prefix, generation, base, adapter, ARGV[5], now, ARGV[8])
  if redis.call('HGET', KEYS[1], 'head_version') == ARGV[5] then
    set_head(prefix, base, adapter)
  end
  return {'retired', retired, ARGV[5], 0}
end

local last = ARGV[6] ~= '' and ARGV[6] or redis.call('ZRANGE', numbers, -1, -1)[1]
if not last then
  return {'retired', 0, '0', 0}
end
for version, aliases in pairs(pointed_at) do
  for _, alias in ipairs(tonumber(version) <= tonumber(last) and aliases or {}) do
    local field = adapter .. '@' .. alias
    redis.call('HDEL', KEYS[3], field)
    redis.call('HDEL', KEYS[1], 'alias:' .. alias)
    remember_move(prefix, field, version, nil, 'pinned', 'retire', ARGV[9], now)
    redis.call('EXPIRE', prefix .. ':catalog:moves:' .. field, ARGV[10])
    announce(prefix, generation, base, 'alias.removed', field, string.format(
      '{"namespace":"%s","name":"%s","alias":"%s","previous":%s}', ARGV[3], ARGV[4], alias, version), now, ARGV[8])
  end
end
local retired = 0
for _, number in ipairs(redis.call('ZRANGE', numbers, '-inf', last, 'BYSCORE', 'LIMIT', 0, ARGV[7])) do
  retired = retired + retire_version(prefix, generation, base, adapter, number, now, ARGV[8])
end
local head = tonumber(redis.call('HGET', KEYS[1], 'head_version') or '0')
if head <= tonumber(last) then
  set_head(prefix, base, adapter)
end
return {'retired', retired, last, redis.call('ZCOUNT', numbers, '-inf', last)}
