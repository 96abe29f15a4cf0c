-- Shared: a stage's work. One due set per stage and namespace (score: when it is due, or when its lease ends),
-- and one set of turns per stage (member: namespace, score: when it next has work), so that namespaces alternate.
local function due_key(ledger, stage, namespace)
  return ledger .. ':due:' .. stage .. ':' .. namespace
end

local function add_due(ledger, stage, namespace, id, at)
  redis.call('ZADD', due_key(ledger, stage, namespace), at, id)
  redis.call('ZADD', ledger .. ':turns:' .. stage, 'LT', at, namespace)
end

local function remove_due(ledger, stage, namespace, id)
  redis.call('ZREM', due_key(ledger, stage, namespace), id)
  redis.call('ZREM', ledger .. ':leases:' .. stage, id)
end
