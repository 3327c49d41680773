-- End a waiting job at once (its entry stays until a worker reads it), mark a running one.
-- ARGV: id, result_ttl_ms. Returns the job's status afterwards, nil when there is no such job.

local id, ttl_ms = ARGV[1], ARGV[2]
local status = redis.call('HGET', key('job', id), 'status')
if status == 'queued' then
  settle(id, ttl_ms, 'cancelled', '{}', {})
  return 'cancelled'
end
if status == 'running' then
  redis.call('SADD', root .. ':cancel', id)
end
return status
