-- Remove an alias: compare-and-swap. The adapter's own goes with the promotion that made it, and else nobody asks for it.
-- requires: clock, admitted, announce, moves
-- KEYS  1 adapter  2 aliases of the base
-- ARGV  1 key prefix  2 base model  3 namespace  4 name  5 alias  6 version expected now: '' for any  7 log length
--       8 who  9 how  10 for how many s the history is kept
--       11 token of the open promotion that is taken back by this, '' for none
-- Returns {'removed', version}, {'conflict', current}, {'unknown'} or {'not-admitted'}.
-- Atomic: of several movers that expect the same version, one wins.
local generation = admitted(ARGV[1] .. ':server')
if not generation then
  return {'not-admitted'}
end
local field, now = ARGV[3] .. '.' .. ARGV[4] .. '@' .. ARGV[5], now_us()
local current = string.match(redis.call('HGET', KEYS[2], field) or '', '^(%d+)')
if not current then
  return {'unknown'}
end
if ARGV[11] ~= '' and not is_open(ARGV[1], field, ARGV[11]) or ARGV[6] ~= '' and ARGV[6] ~= current then
  return {'conflict', current}
end
redis.call('HDEL', KEYS[2], field)
redis.call('HDEL', KEYS[1], 'alias:' .. ARGV[5])
remember_move(ARGV[1], field, current, nil, 'pinned', ARGV[9], ARGV[8], now)
redis.call('EXPIRE', ARGV[1] .. ':catalog:moves:' .. field, ARGV[10])
announce(ARGV[1], generation, ARGV[2], 'alias.removed', field, string.format(
  '{"namespace":"%s","name":"%s","alias":"%s","previous":%s}', ARGV[3], ARGV[4], ARGV[5], current), now, ARGV[7])
return {'removed', current}
