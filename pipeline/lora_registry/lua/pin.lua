-- Pin the artifact that a claimed registration is about to keep: from now until the registration ends, no garbage
-- collection takes it, whether it is there already or comes into being only now.
-- requires: clock
-- KEYS  1 registration
-- ARGV  1 key prefix  2 registration id  3 stage  4 epoch  5 owner  6 digest
--       7 after how many us the claim of a garbage collection counts as abandoned
-- Returns 'pinned', 'lost', or 'removing' when a garbage collection has claimed the artifact.
-- Atomic: an artifact is pinned and unmarked, or it is being removed; never both. See mark.lua and take.lua.
local held = redis.call('HMGET', KEYS[1], 'stage', 'epoch', 'owner')
if held[1] ~= ARGV[3] or held[2] ~= ARGV[4] or held[3] ~= ARGV[5] then
  return 'lost'
end
local ledger = ARGV[1] .. ':ledger'
local since = redis.call('ZSCORE', ledger .. ':removing', ARGV[6])
if since and now_us() - tonumber(since) < tonumber(ARGV[7]) then
  return 'removing'
end
redis.call('ZREM', ledger .. ':removing', ARGV[6])
redis.call('ZREM', ledger .. ':marked', ARGV[6])
redis.call('HSET', ledger .. ':pins', ARGV[2], ARGV[6])
return 'pinned'
