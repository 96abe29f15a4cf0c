-- Move an alias by hand: compare-and-swap, and pin it; or let the adapter's own alias follow its head again. The move may
-- open a promotion, which somebody has to decide, or take back the one that is open: then it has the mode again that it had.
-- requires: clock, admitted, announce, moves
-- KEYS  1 adapter  2 aliases of the base (not its versions: who moves aliases may only read them)
-- ARGV  1 key prefix  2 base model  3 namespace  4 name  5 alias  6 version, '' to follow the head again
--       7 version expected now: '' for any, '0' for none  8 log length  9 who  10 how
--       11 '', 'open' or 'back'  12 token of the promotion  13 to open it: for how many us its promoter counts as alive
--       14 after how many us it is late  15 since when failures count, in us  16 for how many s it is kept at most
-- Returns {'moved', version, previous or ''}, {'unchanged', version}, {'conflict', current or ''},
-- {'promoted', version, who}, {'unknown'} or {'not-admitted'}.
-- Atomic: of several movers that expect the same version, one wins; a promotion is open exactly if its move was made. Opening
-- runs twice to the same end; where another is open it is refused, since to take it back would end at what is only tried.
local generation = admitted(ARGV[1] .. ':server')
if not generation then
  return {'not-admitted'}
end
local adapter = ARGV[3] .. '.' .. ARGV[4]
local field = adapter .. '@' .. ARGV[5]
local current, current_mode = string.match(redis.call('HGET', KEYS[2], field) or '', '^(%d+) (%S+)')
local was_open = ARGV[11] ~= '' and is_open(ARGV[1], field, ARGV[12])
if ARGV[11] == 'open' and was_open then
  return {'moved', current, ''}
end
local tried, who = promoted_to(ARGV[1], field)
if ARGV[11] == 'open' and tried then
  return {'promoted', tried, who}
end
if ARGV[11] == 'back' and not was_open or ARGV[7] ~= '' and ARGV[7] ~= (current or '0') then
  return {'conflict', current or ''}
end

local version, mode = ARGV[6], 'pinned'
if ARGV[11] == 'back' then
  mode = mode_before(ARGV[1], field, version)
end
if version == '' then
  version, mode = redis.call('HGET', KEYS[1], 'head_version') or '', 'follow'
  redis.call('HDEL', KEYS[1], 'follow')
end
local record = redis.call('HGET', ARGV[1] .. ':catalog:versions:' .. ARGV[2], adapter .. '.v' .. version)
if not record then
  return {'unknown'}
end
if version == current and mode == current_mode then
  return {'unchanged', version}
end
redis.call('HSET', KEYS[2], field, string.format('%s %s %s', version, mode, cjson.decode(record).digest))
redis.call('HSET', KEYS[1], 'alias:' .. ARGV[5], 1)
local now = now_us()
remember_move(ARGV[1], field, current, version, mode, ARGV[10], ARGV[9], now)
if ARGV[11] == 'open' then
  local key = ARGV[1] .. ':ledger:promotions'
  redis.call('HSET', key, field, string.format('%.0f %s %s %s %s %.0f %s',
    now + ARGV[13], ARGV[12], version, current or '0', ARGV[15], now + ARGV[14], ARGV[9]))
  redis.call('EXPIRE', key, math.max(redis.call('TTL', key), tonumber(ARGV[16])))
end
announce(ARGV[1], generation, ARGV[2], 'alias.moved', field, string.format(
  '{"namespace":"%s","name":"%s","alias":"%s","version":%s,"previous":%s,"mode":"%s"}',
  ARGV[3], ARGV[4], ARGV[5], version, current or 'null', mode), now, ARGV[8])
return {'moved', version, current or ''}
