-- Shared: end a registration. It leaves the due set, gets its one outcome (and `...`: further fields, values), starts to
-- expire together with its idempotency key and history, and whoever waits for it is rung. Its artifact is no longer pinned,
-- unless it may be driven again.
local function finish(prefix, id, stage, namespace, outcome, now, retention_s, ...)
  local ledger = prefix .. ':ledger'
  local key = ledger .. ':registration:' .. id
  remove_due(ledger, stage, namespace, id)
  local idempotency = redis.call('HGET', key, 'idempotency')
  redis.call('HSET', key, 'outcome', outcome, 'state', outcome, 'stage', '', 'owner', '', 'finished_at', now, ...)
  if outcome ~= 'dead-lettered' then
    redis.call('HDEL', key, 'pinned', 'traits', 'claimed_at', 'claimed_with', 'alone', 'due_at')
    redis.call('HDEL', ledger .. ':pins', id)
  end
  redis.call('EXPIRE', key, retention_s)
  redis.call('EXPIRE', ledger .. ':history:' .. id, retention_s)
  redis.call('EXPIRE', prefix .. ':inbox:idempotency:' .. namespace .. ':' .. idempotency, retention_s)
  redis.call('PUBLISH', prefix .. ':outcome:' .. id, outcome)
end

local function dead_letter(prefix, id, stage, namespace, now, retention_s)
  finish(prefix, id, stage, namespace, 'dead-lettered', now, retention_s, 'dead_stage', stage)
  redis.call('ZADD', prefix .. ':ledger:dead', now, id)
end

local function remember(prefix, id, entry)
  local key = prefix .. ':ledger:history:' .. id
  redis.call('RPUSH', key, entry)
  redis.call('LTRIM', key, -50, -1)
end
