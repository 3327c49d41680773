-- For interactive and batch: jobs that no worker holds, milliseconds since the oldest was put, and the
-- sum of their row_steps.

local now = now_ms()
local depths = {}
for _, priority in ipairs(PRIORITIES) do
  local waiting = key('waiting', priority)
  local oldest = redis.call('ZRANGE', waiting, 0, 0, 'WITHSCORES')[2]
  local row_steps = redis.call('HGET', pace, 'row_steps:' .. priority)
  depths[#depths + 1] = {
    redis.call('ZCARD', waiting), math.max(0, now - (oldest or now)), tonumber(row_steps or 0),
  }
end
return depths
