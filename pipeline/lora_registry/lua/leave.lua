-- A node ends: forget it and what it acknowledged, and ring for whoever waits for these versions.
-- KEYS  1 nodes  2 node  3 acknowledgements of the node  4 those of them that it retired
-- ARGV  1 node id  2 bells, less the version
-- Returns 'ok'. Runs twice to the same end.
local versions = redis.call('HKEYS', KEYS[3])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
for _, version in ipairs(versions) do
  redis.call('PUBLISH', ARGV[2] .. version, '')
end
return 'ok'
