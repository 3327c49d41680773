-- About how many row_steps would be handed out before a job that is put now.
--
-- Before it come its owner's jobs with earlier deadlines, and as many of each other owner; before a batch
-- job also all that is interactive. Waiting jobs count with their mean cost.
--
-- ARGV: priority, owner, deadline in ms.
-- Returns row_steps, and the number of jobs that wait.

local priority, owner = ARGV[1], ARGV[2]
local due = key('due', priority)
local num_own = redis.call('ZCOUNT', due .. ':' .. owner, '-inf', ARGV[3])
local num_ahead = num_own
for _, other in ipairs(redis.call('ZRANGE', key('turns', priority), 0, -1)) do
  if other ~= owner then
    num_ahead = num_ahead + math.min(num_own, redis.call('ZCARD', due .. ':' .. other))
  end
end
local num_waiting = redis.call('ZCARD', key('waiting', priority))
local row_steps = tonumber(redis.call('HGET', pace, 'row_steps:' .. priority) or 0)
local ahead = num_ahead * row_steps / math.max(1, num_waiting)
if priority == 'batch' then
  ahead = ahead + tonumber(redis.call('HGET', pace, 'row_steps:interactive') or 0)
  num_waiting = num_waiting + redis.call('ZCARD', key('waiting', 'interactive'))
end
return { math.floor(ahead), num_waiting }
