-- Note jobs as a caller's before they are put, or none of them when it would have too many that have not
-- ended.
--
-- ARGV: caller, max_jobs, ttl_ms, ids.
-- Returns how many it has without these, and 1 when they were noted.

local RESERVED_MS = 5000 -- who was noted and is not there by then was refused by `put`
local held = key('held', ARGV[1])
local max_jobs, now, num_new = tonumber(ARGV[2]), now_ms(), #ARGV - 3

local flat = redis.call('ZRANGE', held, 0, -1, 'WITHSCORES')
for i = 1, #flat, 2 do
  local status = redis.call('HGET', key('job', flat[i]), 'status')
  if FINAL[status] or (not status and tonumber(flat[i + 1]) < now - RESERVED_MS) then
    redis.call('ZREM', held, flat[i])
  end
end
local num_held = redis.call('ZCARD', held)
if num_held + num_new > max_jobs then
  return { num_held, 0 }
end
for i = 4, #ARGV do
  redis.call('ZADD', held, now, ARGV[i])
end
redis.call('PEXPIRE', held, ARGV[3])
return { num_held, 1 }
