-- For interactive and batch: jobs that no worker holds, and milliseconds since the oldest was put.

local now = now_ms()
local depths = {}
for _, priority in ipairs({ 'interactive', 'batch' }) do
  local stream = key('stream', priority)
  local oldest = now
  local returned = redis.call('XPENDING', stream, GROUP, '-', '+', 1, RETURNED)[1]
  if returned then
    oldest = entry_ms(returned[1])
  end
  local read_up_to
  for _, group in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
    for i = 1, #group, 2 do
      if group[i] == 'last-delivered-id' then
        read_up_to = group[i + 1]
      end
    end
  end
  local unread = redis.call('XRANGE', stream, '(' .. read_up_to, '+', 'COUNT', 1)[1]
  if unread then
    oldest = math.min(oldest, entry_ms(unread[1]))
  end
  depths[#depths + 1] = { waiting(stream), math.max(0, now - oldest) }
end
return depths
