-- End a waiting job at once, mark a running one and tell the workers.
-- ARGV: id, result_ttl_ms. Returns the job's status afterwards, nil when there is no such job.

local id, ttl_ms = ARGV[1], ARGV[2]
local MAX_CANCELLED = 256 -- whoever reads a notice looks at the marks of all that he has
local known = redis.call('HMGET', key('job', id), 'status', 'priority', 'entry')
local status, priority, entry = known[1], known[2] or 'interactive', known[3]
if status == 'queued' then
  local stream = key('stream', priority)
  local fields = entry_fields(stream, entry)
  if fields then
    dequeue(priority, entry, fields)
    remove_entry(stream, entry)
    show_lag(priority)
  end
  settle(id, ttl_ms, 'cancelled', '{}', {})
  return 'cancelled'
end
if status == 'running' then
  go_on_when_full()
  redis.call('SADD', root .. ':cancel', id)
  redis.call('XADD', root .. ':cancelled', 'MAXLEN', '~', MAX_CANCELLED, '*', 'id', id)
end
return status
