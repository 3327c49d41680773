-- What all scripts share; it stands in front of each of them.
--
-- KEYS[1] is the root of the queue's keys. Other keys are built from it: its {hash tag} keeps the whole
-- queue on one shard, so a script never leaves the shard that it was sent to.
--
--   <root>:stream:<priority>  one entry per job: id, owner, row_steps, due (ms); group `workers`; an
--                             entry is pending while a worker has the job, and deleted when it ends
--   <root>:job:<id>           hash: the job's fields, status, num_deliveries, worker, entry, info, error,
--                             expires_ms (once it has ended)
--   <root>:payload:<id>       bytes the job needs, deleted when it ends
--   <root>:outputs:<id>       list of the result's bytes
--   <root>:events:<id>        stream: kind, data (JSON), blob (key of a preview)
--   <root>:group:<id>         hash: a group's fields, num_left (jobs that have not ended), ttl_ms
--   <root>:idempotency:<key>  id of the group that was put with it
--   <root>:done               stream of the ids of jobs that ended, for those who wait
--   <root>:ready:any, :urgent  sorted sets of the readers that wait for jobs, by their free places with a
--                             minus sign; the second ones take interactive jobs only
--   <root>:call:<reader>      list, pushed to when that reader is to look
--   <root>:cancel             set of running jobs that someone cancelled
--   <root>:cancelled          stream of their ids, for the workers to look at once
--   <root>:dead               stream of jobs that were given up; their payloads are kept
--   <root>:alive, :workers    sorted set of names by expiry in ms, and what they announced
--   <root>:last_chances       hash: jobs that were handed out for the last time, and to whom
--   <root>:takes              hash: what each worker was handed last, until it is known to have arrived
--   <root>:pace               hash: ms per finished job, streak of interactive jobs, when a worker was
--                             heard last, and for each priority its clock and the row_steps that wait
--
-- Jobs that no worker has are in waiting.lua's sorted sets.

local root = KEYS[1]
local GROUP = 'workers'
local PRIORITIES = { 'interactive', 'batch' }
local MIN_SILENCE_MS = 2000 -- twice as long as workers wait in one reading
local MAX_EVENTS = 256
local MAX_DONE = 8192
local URGENT = ':urgent' -- after a worker's name: its reader that takes interactive jobs only
local CALL_TTL_MS = 10000 -- longer than a reader that lives waits in one call
local FINAL = { succeeded = true, failed = true, cancelled = true }

local function key(kind, id)
  return root .. ':' .. kind .. ':' .. id
end

local function now_ms()
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end

local function entry_ms(entry)
  return tonumber(string.match(entry, '^(%d+)-'))
end

-- A reply of names and values as a table.
local function to_table(flat)
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- Who holds an entry; nil when nobody does.
local function lease(stream, entry)
  local found = redis.call('XPENDING', stream, GROUP, entry, entry, 1)[1]
  return found and found[2]
end

local function leave_ready(reader)
  redis.call('ZREM', key('ready', 'any'), reader)
  redis.call('ZREM', key('ready', 'urgent'), reader)
end

-- A worker that is gone: off the list, and off the groups unless it left entries behind, which must
-- stay claimable.
local function forget_worker(worker)
  redis.call('ZREM', root .. ':alive', worker)
  redis.call('HDEL', root .. ':workers', worker)
  redis.call('HDEL', root .. ':takes', worker)
  leave_ready(worker)
  leave_ready(worker .. URGENT)
  for _, priority in ipairs(PRIORITIES) do
    local stream = key('stream', priority)
    if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, worker) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, worker)
    end
  end
end

-- When its memory is full Redis refuses a script's first write, unless it is of a command that needs no
-- memory; after that the script may go on. So what hands out, keeps and ends jobs begins with this.
local function go_on_when_full()
  redis.call('XACK', key('stream', PRIORITIES[1]), GROUP, '0-0')
end

-- Whether leases that look ended have ended. After a time without a word from any worker, in which Redis
-- was away or stalled, all look so: their holders then get the time of one lease to renew them.
local function leases_count(lease_ms)
  local now, pace = now_ms(), root .. ':pace'
  local known = redis.call('HMGET', pace, 'heard_ms', 'grace_ms')
  local grace_ms = tonumber(known[2] or 0)
  if now - tonumber(known[1] or now) > math.max(MIN_SILENCE_MS, lease_ms / 2) then
    grace_ms = now + lease_ms
  end
  redis.call('HSET', pace, 'heard_ms', now, 'grace_ms', grace_ms)
  return now >= grace_ms
end

-- Let one of those who wait look for a job of this priority: who has most free places. One, because a
-- thousand that wake for each job would keep the server busier than the jobs do.
local function call_reader(priority)
  local found = redis.call('ZPOPMIN', key('ready', 'any'))[1]
  if not found and priority == 'interactive' then
    found = redis.call('ZPOPMIN', key('ready', 'urgent'))[1]
  end
  if found then
    redis.call('RPUSH', key('call', found), 1)
    redis.call('PEXPIRE', key('call', found), CALL_TTL_MS)
  end
end

local function add_event(id, ttl_ms, kind, data, blob)
  local events = key('events', id)
  local fields = { 'kind', kind, 'data', data }
  if blob then
    fields[5] = 'blob'
    fields[6] = blob
  end
  redis.call('XADD', events, 'MAXLEN', '~', MAX_EVENTS, '*', unpack(fields))
  redis.call('PEXPIRE', events, ttl_ms)
end

local function remove_entry(stream, entry)
  redis.call('XACK', stream, GROUP, entry)
  redis.call('XDEL', stream, entry)
end

-- The last of a group's jobs to end sets how long the group stays: as long as the record that stays
-- longest.
local function settle_in_group(job, ttl_ms)
  local id = redis.call('HGET', job, 'group')
  local group = id and key('group', id)
  if not group or redis.call('EXISTS', group) == 0 then
    return
  end
  local longest = math.max(ttl_ms, tonumber(redis.call('HGET', group, 'ttl_ms') or 0))
  redis.call('HSET', group, 'ttl_ms', longest)
  if redis.call('HINCRBY', group, 'num_left', -1) <= 0 then
    redis.call('PEXPIRE', group, longest)
  end
end

-- The end of a job: its status, its last event and the notice to those who wait. `extra` are further
-- fields of its hash. Nothing is kept longer than the results.
local function settle(id, ttl_ms, status, data, extra, keep_payload)
  local job = key('job', id)
  local expires_ms = string.format('%.0f', now_ms() + ttl_ms)
  redis.call('HSET', job, 'status', status, 'expires_ms', expires_ms, unpack(extra))
  redis.call('PEXPIRE', job, ttl_ms)
  if keep_payload then
    redis.call('PEXPIRE', key('payload', id), ttl_ms)
  else
    redis.call('DEL', key('payload', id))
  end
  redis.call('SREM', root .. ':cancel', id)
  if redis.call('HDEL', root .. ':last_chances', id) == 1 then
    call_reader('interactive') -- the next one may go
  end
  settle_in_group(job, tonumber(ttl_ms))
  add_event(id, ttl_ms, status, data)
  redis.call('XADD', root .. ':done', 'MAXLEN', '~', MAX_DONE, '*', 'id', id)
end

local function settle_failed(id, ttl_ms, error, keep_payload)
  settle(id, ttl_ms, 'failed', '{"error":' .. error .. '}', { 'error', error }, keep_payload)
end
