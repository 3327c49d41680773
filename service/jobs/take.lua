-- Hand out up to `credit` jobs: first those whose lease ended, then new ones, interactive before batch,
-- except that batch gets its share of the slots while both wait.
--
-- ARGV: worker, credit, lease_ms, max_deliveries, waiting_ttl_ms, result_ttl_ms, interactive jobs
-- between two batch jobs, error of a dead letter, error of a passed deadline (both JSON).
-- Returns {deliveries, ids of dead letters, last ids of {interactive, batch, wake}}; a delivery is
-- {entry, deliveries so far, milliseconds waited, payload or nil, hash fields and values}.

local worker, credit, lease_ms = ARGV[1], tonumber(ARGV[2]), ARGV[3]
local max_deliveries, waiting_ttl_ms, result_ttl_ms = tonumber(ARGV[4]), ARGV[5], ARGV[6]
local max_streak, dead_error, late_error = tonumber(ARGV[7]), ARGV[8], ARGV[9]
local MAX_SKIPPED = 1000 -- entries of ended jobs that one call clears away

local now = now_ms()
local priorities = { 'interactive', 'batch' }
local streams = { interactive = key('stream', 'interactive'), batch = key('stream', 'batch') }
-- Fails here, before anything is written, when a group is missing.
local groups = {}
for _, priority in ipairs(priorities) do
  groups[priority] = redis.call('XPENDING', streams[priority], GROUP)
end
local handed, dead, skipped = {}, {}, 0

local function bury(id, fields, owner, count)
  redis.call(
    'XADD', root .. ':dead', 'MAXLEN', '~', MAX_DEAD, '*', 'id', id, 'task', fields.task or '',
    'model', fields.model or '', 'num_deliveries', count, 'worker', owner, 'error', dead_error
  )
  settle_failed(id, result_ttl_ms, dead_error)
  dead[#dead + 1] = id
end

-- Give one entry to the worker, or end it where it stands. `owner` held it before, if anybody did.
local function hand_out(stream, entry, id, count, owner)
  local job = key('job', id)
  local flat = redis.call('HGETALL', job)
  local fields = {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  local live = false
  if not fields.status or FINAL[fields.status] then
    redis.call('SREM', root .. ':cancel', id) -- cancelled while it waited, or expired
  elseif redis.call('SISMEMBER', root .. ':cancel', id) == 1 then
    settle(id, result_ttl_ms, 'cancelled', '{}', {})
  elseif fields.deadline_at and tonumber(fields.deadline_at) * 1000 <= now then
    settle_failed(id, result_ttl_ms, late_error)
  elseif count > max_deliveries then
    bury(id, fields, owner, count - 1)
  else
    live = true
  end
  if not live then
    remove_entry(stream, entry)
    skipped = skipped + 1
    return
  end
  redis.call('HSET', job, 'status', 'running', 'worker', worker, 'entry', entry, 'started_ms', now)
  redis.call('PEXPIRE', job, waiting_ttl_ms)
  redis.call('PEXPIRE', key('payload', id), waiting_ttl_ms)
  add_event(id, waiting_ttl_ms, 'started', '{"num_deliveries":' .. count .. '}')
  local payload = redis.call('GET', key('payload', id))
  handed[#handed + 1] = { entry, count, math.max(0, now - entry_ms(entry)), payload, flat }
  credit = credit - 1
end

local function reclaim(priority)
  local stream = streams[priority]
  while credit > 0 and skipped < MAX_SKIPPED do
    local idle = redis.call('XPENDING', stream, GROUP, 'IDLE', lease_ms, '-', '+', credit)
    if #idle == 0 then
      return
    end
    for _, found in ipairs(idle) do
      local claimed = redis.call('XCLAIM', stream, GROUP, worker, lease_ms, found[1])[1]
      if claimed then
        hand_out(stream, found[1], claimed[2][2], found[4] + 1, found[2])
      else
        redis.call('XACK', stream, GROUP, found[1]) -- its entry is gone
        skipped = skipped + 1
      end
    end
  end
end

local empty = {}

local function read(priority)
  if empty[priority] then
    return false
  end
  local stream = streams[priority]
  local reply = redis.call('XREADGROUP', 'GROUP', GROUP, worker, 'COUNT', 1, 'STREAMS', stream, '>')
  if not reply then
    empty[priority] = true
    return false
  end
  local entry = reply[1][2][1]
  local before = credit
  hand_out(stream, entry[1], entry[2][2], 1, worker)
  return true, credit < before
end

for _, priority in ipairs(priorities) do
  if groups[priority][1] > 0 then
    reclaim(priority)
  end
end

-- The streak is kept in Redis, so the share holds across workers.
local pace = root .. ':pace'
local streak = tonumber(redis.call('HGET', pace, 'streak') or 0)
local streak_before = streak
while credit > 0 and skipped < MAX_SKIPPED do
  local first, second = 'interactive', 'batch'
  if streak >= max_streak then
    first, second = second, first
  end
  local got = first
  local found, live = read(first)
  if not found then
    got = second
    found, live = read(second)
  end
  if not found then
    break
  end
  if live then
    streak = got == 'batch' and 0 or math.min(streak + 1, max_streak)
  end
end
if streak ~= streak_before then
  redis.call('HSET', pace, 'streak', streak)
end

-- Where a reader that got nothing goes on: it wakes for entries newer than these. No places when there
-- may be more to read right now.
local last = {}
if #handed == 0 and skipped < MAX_SKIPPED then
  for i, stream in ipairs({ streams.interactive, streams.batch, root .. ':wake' }) do
    local newest = redis.call('XREVRANGE', stream, '+', '-', 'COUNT', 1)[1]
    last[i] = newest and newest[1] or '0-0'
  end
end
return { handed, dead, last }
