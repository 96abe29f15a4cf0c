-- Shared: what a namespace has published, and whether its policy allows one more version.
-- `catalog:usage:NAMESPACE` is a hash: adapters, bytes, day (whole days since 1970, UTC), versions (on that day).
-- `catalog:stored:NAMESPACE` is a hash: digest → number of the namespace's versions that hold it.
local function usage_of(prefix, namespace, now)
  local kept = redis.call('HMGET', prefix .. ':catalog:usage:' .. namespace, 'adapters', 'versions', 'bytes', 'day')
  local today = math.floor(now / 86400000000)
  local versions = tonumber(kept[4]) == today and tonumber(kept[2]) or 0
  return tonumber(kept[1]) or 0, versions, tonumber(kept[3]) or 0, today
end

-- {code, limit, what it would come to} if one more version is more than the policy allows, else nil.
local function over_quota(prefix, namespace, new_adapters, digest, size_bytes, now)
  local policy = redis.call('HGET', prefix .. ':access:namespaces', namespace)
  local quotas = policy and cjson.decode(policy).quotas
  if not quotas then
    return nil
  end
  local adapters, versions, bytes = usage_of(prefix, namespace, now)
  if redis.call('HEXISTS', prefix .. ':catalog:stored:' .. namespace, digest) == 1 then
    size_bytes = 0
  end
  local function exceeds(limit, value)
    return tonumber(limit) and value > tonumber(limit)
  end
  if new_adapters > 0 and exceeds(quotas.adapters, adapters + new_adapters) then
    return {'QUOTA_ADAPTERS', quotas.adapters, adapters + new_adapters}
  elseif exceeds(quotas.versions_per_day, versions + 1) then
    return {'QUOTA_VERSIONS_PER_DAY', quotas.versions_per_day, versions + 1}
  elseif size_bytes > 0 and exceeds(quotas.bytes, bytes + size_bytes) then
    return {'QUOTA_BYTES', quotas.bytes, bytes + size_bytes}
  end
  return nil
end

local function count_published(prefix, namespace, new_adapters, digest, size_bytes, now)
  local adapters, versions, bytes, today = usage_of(prefix, namespace, now)
  if redis.call('HINCRBY', prefix .. ':catalog:stored:' .. namespace, digest, 1) == 1 then
    bytes = bytes + size_bytes
  end
  redis.call('HSET', prefix .. ':catalog:usage:' .. namespace, 'adapters', string.format('%.0f', adapters + new_adapters),
    'versions', string.format('%.0f', versions + 1), 'bytes', string.format('%.0f', bytes), 'day', today)
end

-- A version is retired: its bytes are given back when no other version of the namespace holds them. The adapter and the
-- day's count stay.
local function count_retired(prefix, namespace, digest, size_bytes)
  local key = prefix .. ':catalog:stored:' .. namespace
  local left = redis.call('HINCRBY', key, digest, -1)
  if left <= 0 then
    redis.call('HDEL', key, digest)
  end
  if left == 0 then
    redis.call('HINCRBY', prefix .. ':catalog:usage:' .. namespace, 'bytes', string.format('%.0f', -size_bytes))
  end
end
