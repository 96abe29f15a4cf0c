-- Say what became of a content of one origin, and remember it for another while: whoever asks has just seen it there.
-- requires: clock
-- KEYS  1 origin
-- ARGV  1 key prefix  2 content  3 retention in s
-- Returns {state, last registration, which of its adapter's registrations that is}; the state is 'new', 'pending',
--         'refused', or the outcome of that registration ('' while it has none), and with 'rejected' come its findings
--         (JSON) and how many us ago that was. The third is 'inf' for what is yet to be registered, '0' once it is
--         forgotten.
-- Atomic: one look. Runs twice to the same end.
local held = redis.call('HMGET', KEYS[1], 'content', 'last_content', 'last_registration')
local registration = held[3] or ''
if held[1] then
  return {held[1] == ARGV[2] and 'pending' or 'new', registration, 'inf'}
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
if held[2] ~= ARGV[2] then
  return {'new', registration, 'inf'}
end
if registration == '' then
  return {'refused', '', '0'}
end
local ended = redis.call('HMGET', ARGV[1] .. ':ledger:registration:' .. registration, 'outcome', 'findings',
  'finished_at', 'order')
local order = ended[4] or redis.call('HGET', ARGV[1] .. ':inbox:accepted:' .. registration, 'order') or '0'
if ended[1] == 'rejected' then
  return {'rejected', registration, order, ended[2] or '[]', string.format('%.0f', now_us() - tonumber(ended[3]))}
end
return {ended[1] or '', registration, order}
