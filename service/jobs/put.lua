-- Put all jobs or none. A job that is already there is left alone, so a repeated call does no harm.
--
-- ARGV: max_waiting, waiting_ttl_ms, result_ttl_ms, error of a passed deadline (JSON), digest of the
-- idempotency key or '', number of the group's values, its fields and values, number of jobs; then for
-- each job: id, priority, owner, row_steps, deadline in ms or '', payload or '', number of hash values,
-- hash fields and values.
-- Returns {'put'}, {'full', jobs that must end before these fit, milliseconds per finished job}, or
-- {'known', fields and values of the group that was put with the key}.

local max_waiting, ttl_ms, result_ttl_ms = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local late_error, digest = ARGV[4], ARGV[5]
local now = now_ms()
local at = 6

local function read_values(into)
  local size = tonumber(ARGV[at])
  for i = 1, size do
    into[i] = ARGV[at + i]
  end
  at = at + 1 + size
  return into
end

local group_values = read_values({})
local group = to_table(group_values)
local jobs, new = {}, {}
at = at + 1
for _ = 1, ARGV[at - 1] do
  local job = {
    id = ARGV[at], priority = ARGV[at + 1], owner = ARGV[at + 2], row_steps = ARGV[at + 3],
    due = ARGV[at + 4], payload = ARGV[at + 5],
  }
  at = at + 6
  job.values = read_values({})
  if redis.call('EXISTS', key('job', job.id)) == 0 then
    jobs[#jobs + 1] = job
    new[job.priority] = (new[job.priority] or 0) + 1
  end
end

-- The group of an earlier call with this key. Not one that came to nothing: a job of it was cancelled, is
-- forgotten, or failed for another reason than the request itself.
local function known_group()
  local id = digest ~= '' and redis.call('GET', key('idempotency', digest))
  local flat = id and redis.call('HGETALL', key('group', id)) or {}
  if #flat == 0 then
    return
  end
  for _, job in ipairs(cjson.decode(to_table(flat).job_ids)) do
    local status, error, deadline_at =
      unpack(redis.call('HMGET', key('job', job), 'status', 'error', 'deadline_at'))
    if error and cjson.decode(error).type ~= 'invalid_request_error' then
      return
    end
    if not FINAL[status] and deadline_at and tonumber(deadline_at) * 1000 <= now then
      return
    end
    if not status or status == 'cancelled' or redis.call('SISMEMBER', root .. ':cancel', job) == 1 then
      return
    end
  end
  return flat
end

local known = known_group()
if known then
  return { 'known', known }
end

local excess = 0
for priority, count in pairs(new) do
  local waiting = key('waiting', priority)
  local room = max_waiting - redis.call('ZCARD', waiting)
  if count > room then
    room = room + expire_waiting(priority, now, count - room, result_ttl_ms, late_error)
  end
  excess = math.max(excess, count - room)
end
if excess > 0 then
  return { 'full', excess, tonumber(redis.call('HGET', pace, 'job_ms') or 0) }
end

for _, job in ipairs(jobs) do
  local hash = key('job', job.id)
  redis.call('HSET', hash, 'status', 'queued', unpack(job.values))
  redis.call('PEXPIRE', hash, ttl_ms)
  if job.payload ~= '' then
    redis.call('SET', key('payload', job.id), job.payload, 'PX', ttl_ms)
  end
  if group.id then
    redis.call('HSET', hash, 'group', group.id)
  end
  add_event(job.id, ttl_ms, 'queued', '{}')
  if job.due == '' then
    job.due = string.format('%.0f', now + ttl_ms) -- then its record expires
  end
  redis.call('HSET', hash, 'entry', add_entry(job.priority, job))
end
if group.id and #jobs > 0 then
  local hash = key('group', group.id)
  redis.call('HSET', hash, 'num_left', #jobs, unpack(group_values))
  redis.call('PEXPIRE', hash, ttl_ms + result_ttl_ms)
  if digest ~= '' then
    redis.call('SET', key('idempotency', digest), group.id, 'PX', ttl_ms + result_ttl_ms)
  end
end
return { 'put' }
