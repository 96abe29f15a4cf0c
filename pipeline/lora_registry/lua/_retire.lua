-- Shared: retiring. A retired version is gone from what nodes and selectors see; its id and digest stay bound to it for
-- ever in `catalog:retired:…`, so that neither is given to anything else.

-- Requires announce and quota. Returns 1 if the version was there.
local function retire_version(prefix, generation, base, adapter, number, now, log_length)
  local field = adapter .. '.v' .. number
  local versions = prefix .. ':catalog:versions:' .. base
  redis.call('ZREM', prefix .. ':catalog:numbers:' .. adapter, number)
  local stored = redis.call('HGET', versions, field)
  if not stored then
    return 0
  end
  local record = cjson.decode(stored)
  redis.call('HDEL', versions, field)
  redis.call('HDEL', prefix .. ':catalog:directed:' .. base, field)
  count_retired(prefix, record.namespace, record.digest, record.size_bytes)
  redis.call('HSET', prefix .. ':catalog:retired:' .. base, field,
    string.format('%d %s %.0f', record.lora_int_id, record.digest, now))
  announce(prefix, generation, base, 'version.retired', record.served_name, string.format(
    '{"namespace":"%s","name":"%s","version":%d,"lora_int_id":%d,"digest":"%s"}',
    record.namespace, record.name, record.version, record.lora_int_id, record.digest), now, log_length)
  return 1
end

-- Version number → list of the aliases that point at it.
local function aliases_by_version(prefix, base, adapter)
  local found = {}
  for _, known in ipairs(redis.call('HKEYS', prefix .. ':catalog:adapter:' .. adapter)) do
    local alias = string.match(known, '^alias:(.+)$')
    local stored = alias and redis.call('HGET', prefix .. ':catalog:aliases:' .. base, adapter .. '@' .. alias)
    if stored then
      local version = string.match(stored, '^(%d+)')
      found[version] = found[version] or {}
      table.insert(found[version], alias)
    end
  end
  return found
end

-- Whether nodes are told, for now, to hold the version although no alias names it.
local function is_directed(prefix, base, field, now)
  local directed = redis.call('HGET', prefix .. ':catalog:directed:' .. base, field)
  return directed and tonumber(string.match(directed, '^(%d+)')) * 1000000 > now
end

-- The head is what the next registration is compared with: of the versions that are left, the newest.
local function set_head(prefix, base, adapter)
  local key = prefix .. ':catalog:adapter:' .. adapter
  local newest = redis.call('ZRANGE', prefix .. ':catalog:numbers:' .. adapter, -1, -1)[1]
  if not newest then
    redis.call('HDEL', key, 'head_version', 'head_digest')
    return
  end
  local stored = redis.call('HGET', prefix .. ':catalog:versions:' .. base, adapter .. '.v' .. newest)
  redis.call('HSET', key, 'head_version', newest, 'head_digest', cjson.decode(stored).digest)
end
