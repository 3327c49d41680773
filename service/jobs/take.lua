-- Hand out jobs: first what an earlier call of this worker handed out and its reply did not reach it,
-- then those whose lease ended, then waiting ones, interactive before batch, except that batch gets its
-- share of the slots while both wait.
--
-- ARGV: worker, credit (jobs of any priority), urgent_credit (of those and interactive ones beyond),
-- lease_ms, max_deliveries, waiting_ttl_ms, result_ttl_ms, dead_letter_ttl_ms, interactive jobs between
-- two batch jobs, error of a dead letter, error of a passed deadline (both JSON), who waits to be called if
-- there is nothing more or '', its free places, name of this call, then the names of calls that went
-- unanswered.
-- Returns {deliveries, ids of dead letters, 1 when it will be called}; a delivery is
-- {entry, deliveries so far, milliseconds waited, payload or nil, hash fields and values}.

local worker, credit, urgent_credit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local lease_ms, max_deliveries = tonumber(ARGV[4]), tonumber(ARGV[5])
local waiting_ttl_ms = ARGV[6]
local result_ttl_ms, dead_ttl_ms, max_streak = ARGV[7], ARGV[8], tonumber(ARGV[9])
local dead_error, late_error = ARGV[10], ARGV[11]
local reader, places, call = ARGV[12], tonumber(ARGV[13]), ARGV[14]
local MAX_SKIPPED = 1000 -- ended jobs that one call clears away
local MAX_DEAD = 1000

local now = now_ms()
-- Fails here, before anything is written, when a group is missing.
local num_pending = {}
for _, priority in ipairs(PRIORITIES) do
  num_pending[priority] = redis.call('XPENDING', key('stream', priority), GROUP)[1]
end
local handed, dead, changed, skipped = {}, {}, {}, 0

local function room(priority)
  return (priority == 'interactive' and urgent_credit or credit) - #handed
end

-- Payload and record stay so that the job can be put back; the oldest letters make room.
local function bury(id, fields, count)
  local letters = root .. ':dead'
  settle_failed(id, dead_ttl_ms, dead_error, true)
  redis.call(
    'XADD', letters, '*', 'id', id, 'task', fields.task or '', 'model', fields.model or '',
    'num_deliveries', count, 'worker', fields.worker or '', 'error', dead_error
  )
  redis.call('XTRIM', letters, 'MINID', string.format('%.0f', now - dead_ttl_ms))
  while redis.call('XLEN', letters) > MAX_DEAD do
    local oldest = redis.call('XRANGE', letters, '-', '+', 'COUNT', 1)[1]
    redis.call('DEL', key('payload', oldest[2][2]))
    redis.call('XDEL', letters, oldest[1])
  end
  dead[#dead + 1] = id
end

local function delivery(entry, id, count, flat)
  local payload = redis.call('GET', key('payload', id))
  return { entry, count, math.max(0, now - entry_ms(entry)), payload, flat, id }
end

-- Give a pending entry's job to the worker, or end it where it stands. True when it was given.
local function hand_out(stream, entry, id)
  local job = key('job', id)
  local flat = redis.call('HGETALL', job)
  local fields = to_table(flat)
  local count = (fields.num_deliveries or 0) + 1
  local live = false
  if not fields.status or FINAL[fields.status] then
    redis.call('SREM', root .. ':cancel', id) -- expired, or ended by someone else
  elseif redis.call('SISMEMBER', root .. ':cancel', id) == 1 then
    settle(id, result_ttl_ms, 'cancelled', '{}', {})
  elseif fields.deadline_at and tonumber(fields.deadline_at) * 1000 <= now then
    settle_failed(id, result_ttl_ms, late_error)
  elseif count > max_deliveries then
    bury(id, fields, count - 1)
  else
    live = true
  end
  if not live then
    remove_entry(stream, entry)
    skipped = skipped + 1
    return false
  end
  redis.call('HSET', job, 'status', 'running', 'worker', worker, 'started_ms', now,
    'num_deliveries', count)
  redis.call('PEXPIRE', job, waiting_ttl_ms)
  redis.call('PEXPIRE', key('payload', id), waiting_ttl_ms)
  if fields.group then
    redis.call('PEXPIRE', key('group', fields.group), waiting_ttl_ms + result_ttl_ms)
  end
  if count > 1 and count == max_deliveries then
    redis.call('HSET', root .. ':last_chances', id, worker)
  end
  add_event(id, waiting_ttl_ms, 'started', '{"num_deliveries":' .. count .. '}')
  handed[#handed + 1] = delivery(entry, id, count, flat)
  return true
end

-- What a call handed out whose reply got lost: the worker does not know that it has these jobs.
local function hand_again()
  local last = redis.call('HGET', root .. ':takes', worker)
  if not last then
    return
  end
  local unanswered = {}
  for i = 14, #ARGV do
    unanswered[ARGV[i]] = true
  end
  if not unanswered[string.match(last, '^%S+')] then
    return
  end
  for priority, entry, id in string.gmatch(last, ' (%S+) (%S+) (%S+)') do
    local stream, job = key('stream', priority), key('job', id)
    local flat = redis.call('HGETALL', job)
    if lease(stream, entry) == worker and to_table(flat).status == 'running' then
      redis.call('XCLAIM', stream, GROUP, worker, 0, entry, 'JUSTID')
      handed[#handed + 1] = delivery(entry, id, tonumber(to_table(flat).num_deliveries), flat)
    end
  end
end

-- Whether the worker has a job that it may be the last one to get.
local function has_last_chance()
  for id, holder in pairs(to_table(redis.call('HGETALL', root .. ':last_chances'))) do
    local known = redis.call('HMGET', key('job', id), 'status', 'worker')
    if holder == worker and known[1] == 'running' and known[2] == worker then
      return true
    end
  end
  return false
end

-- A job that is handed out for the last time meets no other one like it. So one that kills its workers
-- takes those along that were with it before, but not to the end: in their last run it is elsewhere.
local function must_wait(stream, entry)
  local fields = entry_fields(stream, entry)
  local count = fields and redis.call('HGET', key('job', fields.id), 'num_deliveries') or 0
  return max_deliveries > 1 and count + 1 == max_deliveries and has_last_chance()
end

local function reclaim(priority)
  local stream, from = key('stream', priority), '-'
  while room(priority) > 0 and skipped < MAX_SKIPPED do
    local idle = redis.call('XPENDING', stream, GROUP, 'IDLE', lease_ms, from, '+', room(priority))
    if #idle == 0 then
      return
    end
    for _, found in ipairs(idle) do
      if not must_wait(stream, found[1]) then
        local claimed = redis.call('XCLAIM', stream, GROUP, worker, lease_ms, found[1])[1]
        if claimed then
          hand_out(stream, found[1], to_table(claimed[2]).id)
        else
          redis.call('XACK', stream, GROUP, found[1]) -- its entry is gone
          skipped = skipped + 1
        end
      end
    end
    from = '(' .. idle[#idle][1]
  end
end

-- The next waiting job of a priority. Returns whether there was one, and whether it was given.
local function take_next(priority)
  local owner = redis.call('ZRANGE', key('turns', priority), 0, 0)[1]
  if not owner or room(priority) < 1 then
    return false
  end
  local stream = key('stream', priority)
  local member = redis.call('ZRANGE', key('due', priority) .. ':' .. owner, 0, 0)[1]
  if not member then -- somebody deleted the key
    redis.call('ZREM', key('turns', priority), owner)
    skipped = skipped + 1
    return true, false
  end
  local entry = to_entry(member)
  local claimed = redis.call('XCLAIM', stream, GROUP, worker, 0, entry, 'FORCE', 'RETRYCOUNT', 1)[1]
  local fields, given = { owner = owner, row_steps = 0 }, false
  if claimed then
    fields = to_table(claimed[2])
    given = hand_out(stream, entry, fields.id)
  end -- else somebody deleted the entry
  if given then
    charge(priority, owner, fields.row_steps)
  end
  dequeue(priority, entry, fields)
  changed[priority] = true
  return true, given
end

go_on_when_full()
hand_again()
local may_reclaim = leases_count(lease_ms)
for _, priority in ipairs(PRIORITIES) do
  if may_reclaim and num_pending[priority] > 0 then
    reclaim(priority)
  end
  local num_late = expire_waiting(priority, now, MAX_SKIPPED, result_ttl_ms, late_error)
  changed[priority] = num_late > 0
end

-- The streak is kept in Redis, so the share holds across workers.
local streak = tonumber(redis.call('HGET', pace, 'streak') or 0)
local streak_before = streak
while skipped < MAX_SKIPPED do
  local first, second = 'interactive', 'batch'
  if streak >= max_streak then
    first, second = second, first
  end
  local got = first
  local found, given = take_next(first)
  if not found then
    got = second
    found, given = take_next(second)
  end
  if not found then
    break
  end
  if given then
    streak = got == 'batch' and 0 or math.min(streak + 1, max_streak)
  end
end
if streak ~= streak_before then
  redis.call('HSET', pace, 'streak', streak)
end
for priority, is_changed in pairs(changed) do
  if is_changed then
    show_lag(priority)
  end
end

if #handed > 0 then
  local words = { call }
  for _, given in ipairs(handed) do
    local fields = to_table(given[5])
    words[#words + 1] = (fields.priority or 'interactive') .. ' ' .. given[1] .. ' ' .. given[6]
  end
  redis.call('HSET', root .. ':takes', worker, table.concat(words, ' '))
end

-- A reader is called when it got all there was; else it looks again by itself. A call that it has not
-- heard yet was for what it sees now.
local is_ready = reader ~= '' and (#handed == 0 or #handed < credit) and skipped < MAX_SKIPPED
if reader ~= '' then
  redis.call('DEL', key('call', reader))
  leave_ready(reader)
end
if is_ready then
  redis.call('ZADD', key('ready', credit > 0 and 'any' or 'urgent'), #handed - places, reader)
end
return { handed, dead, is_ready and 1 or 0 }
