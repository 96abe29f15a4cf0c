-- Shared: the server's clock in microseconds, the only clock that leases and due times use.
local function now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
