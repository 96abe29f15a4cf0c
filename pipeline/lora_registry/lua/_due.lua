-- Shared: a stage's work. One due set per stage and namespace (score: when it is due, or when its lease ends),
-- and one set of turns per stage (member: namespace, score: when it next has work), so that namespaces alternate.
local function due_key(ledger, stage, namespace)
  return ledger .. ':due:' .. stage .. ':' .. namespace
end

local function add_due(ledger, stage, namespace, id, at)
  redis.call('ZADD', due_key(ledger, stage, namespace), at, id)
  redis.call('ZADD', ledger .. ':turns:' .. stage, 'LT', at, namespace)
end

-- A namespace without due work has no turn: one that were left would hide from `wanted` that others have work.
local function put_off_turn(ledger, stage, namespace)
  local first = redis.call('ZRANGE', due_key(ledger, stage, namespace), 0, 0, 'WITHSCORES')
  if #first == 0 then
    redis.call('ZREM', ledger .. ':turns:' .. stage, namespace)
  else
    redis.call('ZADD', ledger .. ':turns:' .. stage, 'XX', 'GT', first[2], namespace)
  end
end

local function move_due(ledger, stage, namespace, id, at)
  add_due(ledger, stage, namespace, id, at)
  put_off_turn(ledger, stage, namespace)
end

local function remove_due(ledger, stage, namespace, id)
  redis.call('ZREM', due_key(ledger, stage, namespace), id)
  redis.call('ZREM', ledger .. ':leases:' .. stage, id)
  put_off_turn(ledger, stage, namespace)
end
