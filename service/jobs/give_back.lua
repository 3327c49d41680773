-- Free jobs that the worker still holds: they wait again in their place, this delivery not counted.
-- ARGV: worker, waiting_ttl_ms, then for each delivery: priority, entry, id.

local worker, ttl_ms = ARGV[1], ARGV[2]
for i = 3, #ARGV, 3 do
  local priority, entry, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local stream, job = key('stream', priority), key('job', id)
  local fields = lease(stream, entry) == worker and entry_fields(stream, entry)
  if fields then
    redis.call('XACK', stream, GROUP, entry)
    refund(priority, fields.owner, fields.row_steps)
    enqueue(priority, entry, fields)
    if redis.call('HGET', job, 'status') == 'running' then
      redis.call('HSET', job, 'status', 'queued')
      redis.call('HINCRBY', job, 'num_deliveries', -1)
      add_event(id, ttl_ms, 'queued', '{}')
    end
    show_lag(priority)
  end
end
