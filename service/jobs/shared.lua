-- What all scripts share; it stands in front of each of them.
--
-- KEYS[1] is the root of the queue's keys. Other keys are built from it: its {hash tag} keeps the whole
-- queue on one shard, so a script never leaves the shard that it was sent to.
--
--   <root>:stream:<priority>  one entry per job, field `id`; group `workers`; deleted after the ack
--   <root>:job:<id>           hash: the job's fields, status, worker, entry, info, error
--   <root>:payload:<id>       bytes the job needs, deleted when it ends
--   <root>:outputs:<id>       list of the result's bytes
--   <root>:events:<id>        stream: kind, data (JSON), blob (key of a preview)
--   <root>:done               stream of the ids of jobs that ended, for those who wait
--   <root>:wake               stream, touched when an entry becomes free again
--   <root>:cancel             set of running jobs that someone cancelled
--   <root>:dead               stream of jobs that were given up
--   <root>:alive, :workers    sorted set of names by expiry in ms, and what they announced
--   <root>:pace               hash: ms per finished job, streak of interactive jobs

local root = KEYS[1]
local GROUP = 'workers'
local RETURNED = '~returned' -- consumer that holds what workers gave back
local MAX_EVENTS = 256
local MAX_DONE = 8192
local MAX_DEAD = 1000
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

-- Jobs of a stream that no worker holds: unread entries and returned ones.
local function waiting(stream)
  local pending = redis.call('XPENDING', stream, GROUP)
  local returned = 0
  for _, consumer in ipairs(pending[4] or {}) do
    if consumer[1] == RETURNED then
      returned = tonumber(consumer[2])
    end
  end
  return redis.call('XLEN', stream) - pending[1] + returned
end

-- Who holds an entry and how often it was delivered; nil when it is not pending.
local function lease(stream, entry)
  local found = redis.call('XPENDING', stream, GROUP, entry, entry, 1)[1]
  if found then
    return found[2], found[4]
  end
end

-- A worker that is gone: off the list, and off the groups unless it left entries behind, which must
-- stay claimable.
local function forget_worker(worker)
  redis.call('ZREM', root .. ':alive', worker)
  redis.call('HDEL', root .. ':workers', worker)
  for _, priority in ipairs({ 'interactive', 'batch' }) do
    local stream = key('stream', priority)
    if #redis.call('XPENDING', stream, GROUP, '-', '+', 1, worker) == 0 then
      redis.call('XGROUP', 'DELCONSUMER', stream, GROUP, worker)
    end
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

-- The end of a job: its status, its last event and the notice to those who wait. `extra` are further
-- fields of its hash. Nothing is kept longer than the results.
local function settle(id, ttl_ms, status, data, extra)
  local job = key('job', id)
  redis.call('HSET', job, 'status', status, unpack(extra))
  redis.call('PEXPIRE', job, ttl_ms)
  redis.call('DEL', key('payload', id))
  redis.call('SREM', root .. ':cancel', id)
  add_event(id, ttl_ms, status, data)
  redis.call('XADD', root .. ':done', 'MAXLEN', '~', MAX_DONE, '*', 'id', id)
end

local function settle_failed(id, ttl_ms, error)
  settle(id, ttl_ms, 'failed', '{"error":' .. error .. '}', { 'error', error })
end
