-- Shared: how many wake-up messages a stage lacks. Wanted are as many as there are batches of due work, at most one
-- for each worker slot; what was sent and has not been retired by a claim counts as being on its way.
local function wanted(ledger, stage, batch, now)
  local slots = math.max(1, redis.call('ZCOUNT', ledger .. ':slots:' .. stage, now, '+inf'))
  local enough, due = slots * batch, 0
  local namespaces = redis.call('ZRANGEBYSCORE', ledger .. ':turns:' .. stage, '-inf', now, 'LIMIT', 0, enough)
  for _, namespace in ipairs(namespaces) do
    due = due + redis.call('ZCOUNT', due_key(ledger, stage, namespace), '-inf', now)
    if due >= enough then
      break
    end
  end
  return math.min(slots, math.ceil(due / batch)), slots
end

local function wake(ledger, stage, batch, now)
  local key = ledger .. ':wake:' .. stage
  local missing = wanted(ledger, stage, batch, now) - tonumber(redis.call('HGET', key, 'outstanding') or '0')
  if missing <= 0 then
    return 0
  end
  redis.call('HINCRBY', key, 'outstanding', missing)
  redis.call('HSET', key, 'sent_at', now)
  return missing
end
