-- Claim up to `limit` due registrations of a stage, namespaces in turn, each under a lease.
-- requires: clock, due, wake, finish
-- KEYS  1 turns of the stage
-- ARGV  1 key prefix  2 stage  3 owner  4 limit  5 lease in us  6 '1' if a wake-up message called
--       7 most attempts  8 dead-letter retention in s  9 retention in s  10 batch size of the stage
-- Returns {wake-ups to send, 1 if more is due else 0, {field, value, …}, …}: one flat registration hash for each claim.
-- Atomic: a registration is leased to one owner and epoch. A registration whose lease ran out was interrupted: if
-- it had been claimed together with others it is next claimed alone, at no cost; if alone, that was an attempt, and it
-- becomes a suspect: of a stage's suspects only one is leased at a time, so that one which kills a whole worker takes
-- each other registration with it at most once.
local prefix, stage, owner, limit = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local lease_us, most_attempts = tonumber(ARGV[5]), tonumber(ARGV[7])
local ledger, now = prefix .. ':ledger', now_us()
local taken, stop = {}, false

local function interrupted_alone(id, key, registration)
  local attempts = redis.call('HINCRBY', key, 'attempts', 1)
  remember(prefix, id, string.format(
    '{"stage":"%s","attempt":%d,"at_us":%.0f,"code":"WORKER_LOST","error":"the worker %s died or hung; its lease ran out"}',
    stage, attempts, now, registration.owner))
  return attempts
end

-- Until when another suspect of the stage is leased, or nil.
local function other_suspect_until(id)
  local suspect = redis.call('GET', ledger .. ':suspect:' .. stage)
  local lease = suspect and suspect ~= id and redis.call('ZSCORE', ledger .. ':leases:' .. stage, suspect)
  return lease and tonumber(lease) > now and lease or nil
end

-- Decide about one due registration: true if it was claimed.
local function consider(id, namespace)
  local key = ledger .. ':registration:' .. id
  local field = redis.call('HMGET', key, 'stage', 'owner', 'alone', 'claimed_with', 'order', 'name', 'epoch', 'suspect')
  local registration = {owner = field[2], alone = field[3] == '1', claimed_with = tonumber(field[4]) or 0}
  if field[1] ~= stage then
    remove_due(ledger, stage, namespace, id)
    return false
  end
  local overtaken_by = redis.call('HGET', ledger .. ':superseded', namespace .. '.' .. field[6])
  if overtaken_by and tonumber(field[5]) < tonumber(overtaken_by) then
    finish(prefix, id, stage, namespace, 'superseded', now, ARGV[9])
    return false
  end
  if registration.owner ~= '' then
    if registration.claimed_with > 1 then
      registration.alone = true
    elseif interrupted_alone(id, key, registration) >= most_attempts then
      dead_letter(prefix, id, stage, namespace, now, ARGV[8])
      return false
    end
    local suspect = registration.claimed_with <= 1 and stage or ''
    redis.call('HSET', key, 'owner', '', 'claimed_with', 0, 'alone', registration.alone and 1 or 0, 'suspect', suspect)
    field[8] = suspect
  end
  if field[8] == stage then
    local wait_until = other_suspect_until(id)
    if wait_until then
      add_due(ledger, stage, namespace, id, wait_until)
      return false
    end
    redis.call('SET', ledger .. ':suspect:' .. stage, id, 'EX', 86400)
  end
  if registration.alone then
    stop = true
    if #taken > 0 then
      return false
    end
  end
  redis.call('ZADD', due_key(ledger, stage, namespace), now + lease_us, id)
  redis.call('ZADD', ledger .. ':leases:' .. stage, now + lease_us, id)
  taken[#taken + 1] = {key = key, epoch = tonumber(field[7]) + 1}
  return true
end

-- When the namespace next has work: now if some is due (behind those that waited longer), else at its first due time.
local function set_turn(namespace)
  local first = redis.call('ZRANGE', due_key(ledger, stage, namespace), 0, 0, 'WITHSCORES')
  if #first == 0 then
    redis.call('ZREM', KEYS[1], namespace)
  else
    redis.call('ZADD', KEYS[1], math.max(now, tonumber(first[2])), namespace)
  end
end

while #taken < limit and not stop do
  local namespaces = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now, 'LIMIT', 0, limit - #taken)
  if #namespaces == 0 then
    break
  end
  local share = math.ceil((limit - #taken) / #namespaces)
  for _, namespace in ipairs(namespaces) do
    local most = math.min(share, limit - #taken)
    if most > 0 and not stop then
      local due = redis.call('ZRANGEBYSCORE', due_key(ledger, stage, namespace), '-inf', now, 'LIMIT', 0, most)
      for _, id in ipairs(due) do
        if not stop then
          consider(id, namespace)
        end
      end
      set_turn(namespace)
    end
  end
end

local wake_key = ledger .. ':wake:' .. stage
redis.call('HSET', wake_key, 'claimed_at', now)
if ARGV[6] == '1' then
  redis.call('HSET', wake_key, 'answered_at', now, 'resent', 0)
  if tonumber(redis.call('HGET', wake_key, 'outstanding') or '0') > 0 then
    redis.call('HINCRBY', wake_key, 'outstanding', -1)
  end
end

local reply = {wake(ledger, stage, tonumber(ARGV[10]), now), math.min(1, wanted(ledger, stage, 1, now))}
for _, each in ipairs(taken) do
  redis.call('HSET', each.key, 'owner', owner, 'epoch', each.epoch, 'claimed_at', now, 'claimed_with', #taken)
  reply[#reply + 1] = redis.call('HGETALL', each.key)
end
return reply
