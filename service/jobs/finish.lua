-- End a job that the worker holds. Who lost the lease changes nothing; who repeats the call changes
-- nothing either, but is told that the job is his.
--
-- ARGV: worker, priority, entry, id, result_ttl_ms, status, info or error (JSON) or '', then outputs.
-- Returns 1 when the job ended by this worker, else 0.

local worker, stream, entry, id = ARGV[1], key('stream', ARGV[2]), ARGV[3], ARGV[4]
local ttl_ms, status, detail = ARGV[5], ARGV[6], ARGV[7]
local job = key('job', id)

if lease(stream, entry) ~= worker then
  local known = redis.call('HMGET', job, 'status', 'settled_by')
  return (FINAL[known[1]] and known[2] == worker .. ' ' .. entry) and 1 or 0
end
local known = redis.call('HMGET', job, 'status', 'started_ms')
remove_entry(stream, entry)
if not known[1] or FINAL[known[1]] then
  return 0 -- expired, or ended by someone else in the meantime
end

if status == 'failed' then
  settle_failed(id, ttl_ms, detail)
elseif status == 'cancelled' then
  settle(id, ttl_ms, status, '{}', {})
else
  settle(id, ttl_ms, status, detail, { 'info', detail })
  local outputs = key('outputs', id)
  for i = 8, #ARGV do
    redis.call('RPUSH', outputs, ARGV[i])
  end
  if #ARGV >= 8 then
    redis.call('PEXPIRE', outputs, ttl_ms)
  end
end
redis.call('HSET', job, 'settled_by', worker .. ' ' .. entry)

-- How long the queue takes per job while it is busy: the time since the last one ended, or since this
-- one started when nothing ended in between; smoothed. Refused callers are told to wait accordingly.
local now = now_ms()
local before = redis.call('HMGET', pace, 'last_ms', 'job_ms')
local took = now - math.max(tonumber(before[1] or 0), tonumber(known[2] or now))
local job_ms = before[2] and 0.9 * before[2] + 0.1 * took or took
redis.call('HSET', pace, 'last_ms', now, 'job_ms', string.format('%.3f', job_ms))
return 1
