-- Free entries that the worker still holds: claimable at once, this delivery not counted.
-- ARGV: worker, waiting_ttl_ms, then for each delivery: priority, entry, id.

local worker, ttl_ms = ARGV[1], ARGV[2]
local DAY_MS = 86400000 -- idle for longer than any lease; Redis takes far larger values for "now"
local freed = 0
for i = 3, #ARGV, 3 do
  local stream, entry, id = key('stream', ARGV[i]), ARGV[i + 1], ARGV[i + 2]
  local owner, count = lease(stream, entry)
  if owner == worker then
    redis.call(
      'XCLAIM', stream, GROUP, RETURNED, 0, entry,
      'IDLE', DAY_MS, 'RETRYCOUNT', math.max(0, count - 1), 'JUSTID'
    )
    if redis.call('HGET', key('job', id), 'status') == 'running' then
      redis.call('HSET', key('job', id), 'status', 'queued')
      add_event(id, ttl_ms, 'queued', '{}')
    end
    freed = freed + 1
  end
end
if freed > 0 then
  redis.call('XADD', root .. ':wake', 'MAXLEN', 1, '*', 'freed', freed)
end
return freed
