-- Shared: generation and number offset of this server, or nil when the dispatcher has not admitted it. The offset grows
-- with every admission, so it also tells whether something was numbered under this one.
-- Every script that issues a number asks first: a server that lost its last writes would issue them twice.
local function admitted(server_key)
  local run_id = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local server = redis.call('HMGET', server_key, 'run_id', 'generation', 'offset')
  if server[1] ~= run_id then
    return nil
  end
  return server[2], tonumber(server[3])
end
