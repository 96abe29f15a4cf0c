-- A node acknowledges versions.
-- requires: clock
-- KEYS  1 acknowledgements of the node  2 those of them that it retired, newest first
-- ARGV  1 retention in s  2 most retired versions kept  3 bells, less the version
--       4… for each, in order: served name, state, code or '-', reason, states that it may follow: ',seen,fetched,…,'
-- Returns for each 'ok', 'same', or the state before, which it may not follow.
-- Atomic: no state is said after one that it may not follow; the bells ring for each change, in order, and for nothing
-- else. What may not follow changes nothing, and the rest counts all the same.
local function acknowledge(version, after, code, reason, may_follow)
  local before = redis.call('HGET', KEYS[1], version)
  local state, rest
  if before then
    state, rest = string.match(before, '^(%S+) %d+ (.*)$')
    if not string.find(may_follow, ',' .. state .. ',', 1, true) then
      return state
    end
    if state == after and rest == code .. ' ' .. reason then
      return 'same'
    end
  end
  redis.call('HSET', KEYS[1], version, string.format('%s %.0f %s %s', after, now_us(), code, reason))
  if not before then
    redis.call('EXPIRE', KEYS[1], ARGV[1])
  end
  if after == 'retired' and state ~= 'retired' then
    redis.call('LPUSH', KEYS[2], version)
    redis.call('EXPIRE', KEYS[2], ARGV[1])
    while redis.call('LLEN', KEYS[2]) > tonumber(ARGV[2]) do
      local oldest = redis.call('RPOP', KEYS[2])
      if string.find(redis.call('HGET', KEYS[1], oldest) or '', '^retired ') then
        redis.call('HDEL', KEYS[1], oldest)
      end
    end
  end
  redis.call('PUBLISH', ARGV[3] .. version, after)
  return 'ok'
end

local answers = {}
for at = 4, #ARGV, 5 do
  answers[#answers + 1] = acknowledge(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
end
return answers
