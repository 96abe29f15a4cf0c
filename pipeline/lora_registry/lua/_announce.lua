-- Shared: one announcement: next sequence of the base model, log entry, PUBLISH. `data` is JSON; every other part
-- is a checked name or a number, so the message can be put together as text.

-- RFC 3339 in UTC, from days since 1970-01-01 to a civil date. Source: H. Hinnant, "chrono-compatible low-level date
-- algorithms", civil_from_days.
local function rfc3339(now)
  local seconds = math.floor(now / 1000000)
  local shifted = math.floor(seconds / 86400) + 719468
  local era = math.floor(shifted / 146097)
  local day_of_era = shifted - era * 146097
  local year_of_era = math.floor((day_of_era - math.floor(day_of_era / 1460) + math.floor(day_of_era / 36524)
    - math.floor(day_of_era / 146096)) / 365)
  local day_of_year = day_of_era - (365 * year_of_era + math.floor(year_of_era / 4) - math.floor(year_of_era / 100))
  local shifted_month = math.floor((5 * day_of_year + 2) / 153)
  local day = day_of_year - math.floor((153 * shifted_month + 2) / 5) + 1
  local month = shifted_month < 10 and shifted_month + 3 or shifted_month - 9
  local year = year_of_era + era * 400 + (month <= 2 and 1 or 0)
  local rest = seconds % 86400
  return string.format('%04d-%02d-%02dT%02d:%02d:%02d.%06dZ', year, month, day, math.floor(rest / 3600),
    math.floor(rest % 3600 / 60), rest % 60, now % 1000000)
end

local function announce(prefix, generation, base, kind, subject, data, now, log_length)
  local sequence = redis.call('HINCRBY', prefix .. ':catalog:sequences', base, 1)
  local message = string.format(
    '{"specversion":"1.0","id":"%s/%s/%d","source":"/lora-registry","type":"io.lora-registry.%s.v1",'
      .. '"subject":"%s","generation":"%s","basemodel":"%s","sequence":"%d","time":"%s",'
      .. '"datacontenttype":"application/json","data":%s}',
    generation, base, sequence, kind, subject, generation, base, sequence, rfc3339(now), data
  )
  redis.call('XADD', prefix .. ':log:' .. base, 'MAXLEN', '~', log_length, sequence .. '-0', 'message', message)
  redis.call('PUBLISH', prefix .. ':announce:' .. base, message)
  return sequence
end
