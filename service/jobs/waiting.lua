-- Jobs that no worker has, and whose turn it is. Used by scripts that put, hand out or remove jobs.
--
--   <root>:waiting:<priority>      sorted set of members by arrival in ms
--   <root>:due:<priority>          the same members by deadline in ms
--   <root>:due:<priority>:<owner>  one owner's members by deadline
--   <root>:turns:<priority>        owners with waiting jobs, by the virtual time of their turn
--   <root>:rested:<priority>       owners without, whose turn would lie after the clock
--
-- Start-time fair queueing: each row_step that an owner is served moves its turn on by one, and the
-- earliest turn is next. The clock is the turn that was served last. An owner that comes back starts at
-- the clock if its turn lies before it, so nobody saves up turns by staying away, and nobody gains
-- by sending jobs one at a time.
--
-- A member is the job's entry with its second number padded, so that members of one score sort by
-- arrival.

local pace = root .. ':pace'

local function to_member(entry)
  local ms, number = string.match(entry, '^(%d+)-(%d+)$')
  return string.format('%s-%010.0f', ms, number)
end

local function to_entry(member)
  local ms, number = string.match(member, '^(%d+)-(%d+)$')
  return string.format('%s-%.0f', ms, number)
end

local function clock(priority)
  return tonumber(redis.call('HGET', pace, 'clock:' .. priority) or 0)
end

-- `entry` with its `fields`, which are the stream's; somebody is called to take it.
local function enqueue(priority, entry, fields)
  local member, turns = to_member(entry), key('turns', priority)
  redis.call('ZADD', key('waiting', priority), entry_ms(entry), member)
  redis.call('ZADD', key('due', priority), fields.due, member)
  redis.call('ZADD', key('due', priority) .. ':' .. fields.owner, fields.due, member)
  redis.call('HINCRBY', pace, 'row_steps:' .. priority, fields.row_steps)
  if not redis.call('ZSCORE', turns, fields.owner) then
    local rested = key('rested', priority)
    local turn = tonumber(redis.call('ZSCORE', rested, fields.owner) or 0)
    redis.call('ZREM', rested, fields.owner)
    redis.call('ZADD', turns, string.format('%.0f', math.max(turn, clock(priority))), fields.owner)
  end
  call_reader(priority)
end

-- Put an entry into the stream and let it wait. Returns the entry.
local function add_entry(priority, fields)
  local entry = redis.call(
    'XADD', key('stream', priority), '*',
    'id', fields.id, 'owner', fields.owner, 'row_steps', fields.row_steps, 'due', fields.due
  )
  enqueue(priority, entry, fields)
  return entry
end

-- False when it does not wait.
local function dequeue(priority, entry, fields)
  local member, waiting = to_member(entry), key('waiting', priority)
  local mine = key('due', priority) .. ':' .. fields.owner
  if redis.call('ZREM', waiting, member) == 0 then
    return false
  end
  redis.call('ZREM', key('due', priority), member)
  redis.call('ZREM', mine, member)
  if redis.call('EXISTS', waiting) == 1 then
    local served = string.format('%.0f', 0 - fields.row_steps)
    redis.call('HINCRBY', pace, 'row_steps:' .. priority, served)
  else
    redis.call('HDEL', pace, 'row_steps:' .. priority)
  end
  if redis.call('EXISTS', mine) == 0 then
    local turns = key('turns', priority)
    local turn = redis.call('ZSCORE', turns, fields.owner)
    redis.call('ZREM', turns, fields.owner)
    if turn and tonumber(turn) > clock(priority) then
      redis.call('ZADD', key('rested', priority), turn, fields.owner)
    end
  end
  return true
end

-- Count row_steps as served, before the job is dequeued.
local function charge(priority, owner, row_steps)
  local turns, rested = key('turns', priority), key('rested', priority)
  local turn = tonumber(redis.call('ZSCORE', turns, owner))
  local now = math.max(clock(priority), turn)
  redis.call('HSET', pace, 'clock:' .. priority, string.format('%.0f', now))
  redis.call('ZREMRANGEBYSCORE', rested, '-inf', string.format('%.0f', now))
  redis.call('ZINCRBY', turns, row_steps, owner)
end

-- Take a charge back, before the job is enqueued again.
local function refund(priority, owner, row_steps)
  for _, kind in ipairs({ 'turns', 'rested' }) do
    if redis.call('ZSCORE', key(kind, priority), owner) then
      redis.call('ZINCRBY', key(kind, priority), -row_steps, owner)
    end
  end
end

-- The fields of an entry; nil when somebody deleted it.
local function entry_fields(stream, entry)
  local found = redis.call('XRANGE', stream, entry, entry)[1]
  return found and to_table(found[2])
end

-- Fail jobs whose deadline has passed, at most `limit`. Returns how many were removed.
local function expire_waiting(priority, now, limit, ttl_ms, error)
  local stream = key('stream', priority)
  local late = redis.call('ZRANGEBYSCORE', key('due', priority), '-inf', now, 'LIMIT', 0, limit)
  for _, member in ipairs(late) do
    local entry = to_entry(member)
    local fields = entry_fields(stream, entry)
    if fields then
      dequeue(priority, entry, fields)
      redis.call('XDEL', stream, entry)
      local status = redis.call('HGET', key('job', fields.id), 'status')
      if status and not FINAL[status] then
        settle_failed(fields.id, ttl_ms, error)
      end
    else -- somebody deleted the entry
      redis.call('ZREM', key('due', priority), member)
    end
  end
  return #late
end

-- Autoscalers read how many entries a group is behind. Entries are handed out in another order than the
-- stream's, so the server cannot know: it is told. Redis 6.2 has no such number.
local function show_lag(priority)
  if not redis.REDIS_VERSION_NUM then
    return
  end
  local stream = key('stream', priority)
  local info = to_table(redis.call('XINFO', 'STREAM', stream))
  local num_read = info['entries-added'] - redis.call('ZCARD', key('waiting', priority))
  -- A place beyond the last entry: it may be deleted, and the server does not count past such gaps.
  local ms, number = string.match(info['last-generated-id'], '^(%d+)-(%d+)$')
  local place = ms .. '-' .. string.format('%.0f', number + 1)
  redis.call('XGROUP', 'SETID', stream, GROUP, place, 'ENTRIESREAD', math.max(0, num_read))
end
