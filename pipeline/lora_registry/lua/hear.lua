-- Take one authentic delivery of a hook: record it, and make pending what it asks for.
-- requires: clock
-- KEYS  1 delivery  2 history of the hook  3 pending origins  4 what adapters are named after
--       5… for each origin: its hash, and who waits for it
-- ARGV  1 key prefix  2 the delivery, as its key ends  3 retention in s  4 most origins pending
--       5 deliveries kept in the history  6 '1' to ask in any case  7 why nothing is asked for  8 id of the delivery
--       9 its body  10 what to say of a name that is another's
--       11… for each origin: its name, event (JSON), content, order, quiet in us, longest wait in us, field of its
--           adapter's name ('' if anything may have it), what that is named after
-- Returns 'queued', 'duplicate' or 'ignored', a blank and the reason; or 'full'. One text: redis-py reads it in half the
-- time of two.
-- Atomic: the delivery is recorded and everything that it asks for is pending, or nothing is. Runs twice to the same end.
local prefix, reference, forced = ARGV[1], ARGV[2], ARGV[6] == '1'
local now = now_us()
local before = redis.call('HMGET', KEYS[1], 'verdict', 'refusal', 'times')

local function failed(registration_id)
  local outcome = redis.call('HGET', prefix .. ':ledger:registration:' .. registration_id, 'outcome')
  return outcome == 'rejected' or outcome == 'dead-lettered'
end

-- Whether what the delivery asked for is on its way or went well: then the sender's repetition asks for nothing.
local function is_served()
  if before[1] ~= 'queued' or before[2] then
    return false
  end
  local fields = redis.call('HGETALL', KEYS[1])
  for place = 1, #fields, 2 do
    if string.sub(fields[place], 1, 13) == 'registration:' and failed(fields[place + 1]) then
      return false
    end
  end
  return true
end

-- Orders are hexadecimal and grow; the shorter one is filled up with zeros. Source: Amazon S3 user guide, sequencer.
local function is_earlier(one, other)
  local length = math.max(#one, #other)
  return one .. string.rep('0', length - #one) < other .. string.rep('0', length - #other)
end

if not forced and is_served() then
  redis.call('HINCRBY', KEYS[1], 'times', 1)
  return 'duplicate This delivery was queued before.'
end
if redis.call('ZCARD', KEYS[3]) + (#KEYS - 4) / 2 > tonumber(ARGV[4]) then
  return 'full'
end

-- A name belongs to what it was first made of, until a person redelivers what another one asks for; says whose it is.
local function name_taken_by(field, named_after)
  local owner = field ~= '' and redis.call('HGET', KEYS[4], field)
  if owner and owner ~= named_after and not forced then
    return owner
  elseif field ~= '' and owner ~= named_after then
    redis.call('HSET', KEYS[4], field, named_after)
  end
  return nil
end

local queued, repeated, late, taken = 0, 0, 0, ''
for place = 0, (#KEYS - 6) / 2 do
  local origin, waiting, at = KEYS[5 + 2 * place], KEYS[6 + 2 * place], 11 + 8 * place
  local content, order = ARGV[at + 2], ARGV[at + 3]
  local held = redis.call('HMGET', origin, 'content', 'order', 'first_at', 'last_content', 'last_registration')
  local owner = name_taken_by(ARGV[at + 6], ARGV[at + 7])
  if owner then
    taken = string.format('%s (%s)', ARGV[10], owner)
  elseif not forced and order ~= '' and held[2] and is_earlier(order, held[2]) then
    late = late + 1
  elseif not forced and not held[1] and held[4] == content and held[5] ~= '' and not failed(held[5]) then
    repeated = repeated + 1
  else
    local first_at = held[1] and tonumber(held[3]) or now
    local due_at = math.min(now + tonumber(ARGV[at + 4]), first_at + tonumber(ARGV[at + 5]))
    redis.call('HSET', origin, 'event', ARGV[at + 1], 'content', content, 'order', order, 'first_at', first_at)
    if held[4] and not held[1] then -- it was settled, and expires
      redis.call('PERSIST', origin)
    end
    redis.call('ZADD', KEYS[3], due_at, ARGV[at])
    if before[1] then -- else it waits for nothing yet
      redis.call('LREM', waiting, 0, reference)
    end
    if redis.call('RPUSH', waiting, reference) > 200 then
      redis.call('LTRIM', waiting, -200, -1)
    end
    queued = queued + 1
  end
end

local verdict, reason = 'ignored', ARGV[7]
if queued > 0 then
  verdict, reason = 'queued', taken
elseif taken ~= '' then
  reason = taken
elseif repeated > 0 then
  verdict, reason = 'duplicate', 'The same content was queued before.'
elseif late > 0 then
  reason = 'A later event about the same object came before.'
end

if before[1] then
  redis.call('DEL', KEYS[1])
end
redis.call('HSET', KEYS[1], 'id', ARGV[8], 'at', now, 'verdict', verdict, 'reason', reason, 'body', ARGV[9],
  'times', tonumber(before[3] or '0') + 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('LREM', KEYS[2], 0, reference) -- the history may be older than what it names
if redis.call('LPUSH', KEYS[2], reference) > tonumber(ARGV[5]) then
  for _, old in ipairs(redis.call('LRANGE', KEYS[2], ARGV[5], -1)) do
    redis.call('HDEL', prefix .. ':hooks:delivery:' .. old, 'body')
  end
  redis.call('LTRIM', KEYS[2], 0, tonumber(ARGV[5]) - 1)
end
redis.call('EXPIRE', KEYS[2], ARGV[3])
return verdict .. ' ' .. reason
