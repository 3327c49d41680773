-- Put all jobs or none. A job that is already there is left alone, so a repeated call does no harm.
--
-- ARGV: max_waiting, ttl_ms, number of jobs; then for each job: id, priority, payload or '', number of
-- hash values, hash fields and values.
-- Returns {1}, or {0, jobs that must end before these fit, milliseconds per finished job}.

local max_waiting, ttl_ms = tonumber(ARGV[1]), ARGV[2]
local jobs, new = {}, {}
local at = 4
for _ = 1, ARGV[3] do
  local size = tonumber(ARGV[at + 3])
  local job = { id = ARGV[at], priority = ARGV[at + 1], payload = ARGV[at + 2], fields = {} }
  for i = 1, size do
    job.fields[i] = ARGV[at + 3 + i]
  end
  if redis.call('EXISTS', key('job', job.id)) == 0 then
    jobs[#jobs + 1] = job
    new[job.priority] = (new[job.priority] or 0) + 1
  end
  at = at + 4 + size
end

local excess = 0
for priority, count in pairs(new) do
  excess = math.max(excess, waiting(key('stream', priority)) + count - max_waiting)
end
if excess > 0 then
  return { 0, excess, tonumber(redis.call('HGET', root .. ':pace', 'job_ms') or 0) }
end

for _, job in ipairs(jobs) do
  local hash = key('job', job.id)
  redis.call('HSET', hash, 'status', 'queued', unpack(job.fields))
  redis.call('PEXPIRE', hash, ttl_ms)
  if job.payload ~= '' then
    redis.call('SET', key('payload', job.id), job.payload, 'PX', ttl_ms)
  end
  add_event(job.id, ttl_ms, 'queued', '{}')
  redis.call('XADD', key('stream', job.priority), '*', 'id', job.id)
end
return { 1 }
