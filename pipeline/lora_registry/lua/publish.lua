-- Publish a validated registration: version record, alias by the rule, announcements, outcome.
-- requires: clock, admitted, due, finish, announce, moves, quota, retire
-- KEYS  1 registration  2 adapter  3 versions of the base  4 aliases of the base
-- ARGV  1 key prefix  2 registration id  3 epoch  4 owner  5 version record (JSON)  6 log length  7 retention in s
--       8 versions to keep of an adapter where nothing else is said, 0 for all
-- Returns {'published'|'unchanged'|'superseded'} or {'lost'|'not-admitted'|'readmit'|'base-conflict'|'taken'|'removing'}
--         or {'quota', code, limit, what it would come to}.
-- Atomic: record, alias, log entries, PUBLISH and outcome happen together or not at all.
-- The rule of the adapter's own alias: bytes equal to its target's (or to the head's, where people moved it) change
-- nothing; else only an event accepted later than every one that has decided so far moves it, and a pinned or manual
-- alias is moved by nobody. Of the older versions those go that are over the number to keep, unless an alias, the head,
-- an open promotion or a direction holds them.
local generation, offset = admitted(ARGV[1] .. ':server')
if not generation then
  return {'not-admitted'}
end
local prefix, id, now = ARGV[1], ARGV[2], now_us()
local held = redis.call('HMGET', KEYS[1], 'stage', 'epoch', 'owner', 'offset', 'namespace', 'name', 'order', 'due_at')
if held[1] ~= 'publish' or held[2] ~= ARGV[3] or held[3] ~= ARGV[4] then
  return {'lost'}
end
if tonumber(held[4]) ~= offset then
  return {'readmit'}
end

local record = cjson.decode(ARGV[5])
local namespace, name, order = held[5], held[6], tonumber(held[7])
local adapter, base, digest = namespace .. '.' .. name, record.base_model, record.digest
local function finish_as(outcome, ...)
  finish(prefix, id, 'publish', namespace, outcome, now, ARGV[7], 'publish_us', now - tonumber(held[8]), ...)
  return {outcome}
end
local overtaken_by = tonumber(redis.call('HGET', prefix .. ':ledger:superseded', adapter) or '0')
if order < overtaken_by then
  return finish_as('superseded')
end

-- The registration's pin forbids both; this holds for one that was validated before there were pins, too.
if redis.call('ZSCORE', prefix .. ':ledger:removing', digest) then
  return {'removing'}
end
redis.call('ZREM', prefix .. ':ledger:marked', digest)

local known = redis.call('HMGET', KEYS[2], 'base', 'decided', 'head_version', 'head_digest', 'follow')
if known[1] and known[1] ~= base then
  return {'base-conflict'}
end
local own_alias = adapter .. '@' .. name
local target, mode, target_digest =
  string.match(redis.call('HGET', KEYS[4], own_alias) or '', '^(%d+) (%S+) (%S+)$')
local newest = order > tonumber(known[2] or '0')
local same = digest == target_digest and target or digest == known[4] and known[3] or nil

local function same_map(one, other)
  for key, value in pairs(one) do
    if other[key] ~= value then
      return false
    end
  end
  for key in pairs(other) do
    if one[key] == nil then
      return false
    end
  end
  return true
end

if same then
  local field = adapter .. '.v' .. same
  local current = cjson.decode(redis.call('HGET', KEYS[3], field))
  if newest then
    redis.call('HSET', KEYS[2], 'decided', order, 'head_version', same, 'head_digest', digest)
    if not (same_map(record.labels, current.labels) and same_map(record.metadata, current.metadata)) then
      current.labels, current.metadata = record.labels, record.metadata
      local changed = cjson.encode(current)
      redis.call('HSET', KEYS[3], field, changed)
      announce(prefix, generation, base, 'version.labels-changed', current.served_name, changed, now, ARGV[6])
    end
  end
  return finish_as('unchanged', 'version', same, 'lora_int_id', current.lora_int_id, 'served_name',
    current.served_name)
end

-- Only here is anything counted, and a registration comes past here once: what is rejected, unchanged or superseded costs
-- nothing, and nothing has to be given back.
local new_adapters = known[1] and 0 or 1
local over = over_quota(prefix, namespace, new_adapters, digest, record.size_bytes, now)
if over then
  return {'quota', over[1], string.format('%.0f', over[2]), string.format('%.0f', over[3])}
end

local field = adapter .. '.v' .. record.version
if redis.call('HEXISTS', prefix .. ':catalog:retired:' .. base, field) == 1
  or redis.call('HSETNX', KEYS[3], field, ARGV[5]) == 0 then
  return {'taken'}
end
count_published(prefix, namespace, new_adapters, digest, record.size_bytes, now)
redis.call('ZADD', prefix .. ':catalog:numbers:' .. adapter, record.version, record.version)
redis.call('HSET', prefix .. ':catalog:adapters', adapter, base)
redis.call('HSET', KEYS[2], 'base', base)
if redis.call('HGET', KEYS[1], 'follow') == 'manual' then
  redis.call('HSET', KEYS[2], 'follow', 'manual')
  known[5] = 'manual'
end
announce(prefix, generation, base, 'version.published', record.served_name, ARGV[5], now, ARGV[6])
if newest then
  redis.call('HSET', KEYS[2], 'decided', order, 'head_version', record.version, 'head_digest', digest)
  if mode ~= 'pinned' and known[5] ~= 'manual' then
    redis.call('HSET', KEYS[4], own_alias, string.format('%d follow %s', record.version, digest))
    redis.call('HSET', KEYS[2], 'alias:' .. name, 1)
    remember_move(prefix, own_alias, target, record.version, 'follow', 'follow', id, now)
    announce(prefix, generation, base, 'alias.moved', own_alias, string.format(
      '{"namespace":"%s","name":"%s","alias":"%s","version":%d,"previous":%s,"mode":"follow"}',
      namespace, name, name, record.version, target or 'null'), now, ARGV[6])
  end
end

local keeps = redis.call('HMGET', prefix .. ':catalog:keep', adapter, namespace)
local keep = tonumber(keeps[1] or keeps[2] or ARGV[8])
if keep > 0 then
  local numbers = prefix .. ':catalog:numbers:' .. adapter
  local over = redis.call('ZCARD', numbers) - keep
  if over > 0 then
    local pointed_at = aliases_by_version(prefix, base, adapter)
    pointed_at[redis.call('HGET', KEYS[2], 'head_version')] = {}
    local earlier = aliases_by_earlier_version(prefix, adapter)
    -- All of those over, or as many as a publish can be kept waiting for: the next one takes the rest.
    for _, number in ipairs(redis.call('ZRANGE', numbers, 0, math.min(over, 200) - 1)) do
      if not pointed_at[number] and not earlier[number]
        and not is_directed(prefix, base, adapter .. '.v' .. number, now) then
        retire_version(prefix, generation, base, adapter, number, now, ARGV[6])
      end
    end
  end
end
return finish_as('published', 'served_name', record.served_name)
