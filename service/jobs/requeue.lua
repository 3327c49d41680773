-- Put a job that was given up back, as if it were new. A repeated call changes nothing.
-- ARGV: entry among the dead letters, id, waiting_ttl_ms, result_ttl_ms, deadline in ms or '', then fields
-- and values for the job's hash. Returns 1, or 0 when it is no dead letter any more.

local letter, id, ttl_ms, result_ttl_ms, due = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local job, letters = key('job', id), root .. ':dead'
local fields = to_table(redis.call('HGETALL', job))
if fields.letter == letter then
  return 1
end
if #redis.call('XRANGE', letters, letter, letter) == 0 or fields.status ~= 'failed' then
  return 0
end

redis.call('HSET', job, 'status', 'queued', 'letter', letter, unpack(ARGV, 6))
redis.call(
  'HDEL', job, 'error', 'settled_by', 'worker', 'started_ms', 'expires_ms', 'num_deliveries'
)
redis.call('XDEL', letters, letter)
redis.call('PEXPIRE', job, ttl_ms)
redis.call('PEXPIRE', key('payload', id), ttl_ms)
redis.call('DEL', key('events', id)) -- they end with a failure
add_event(id, ttl_ms, 'queued', '{}')
local priority = fields.priority or PRIORITIES[1]
local entry_values = {
  id = id, owner = fields.owner or '', row_steps = fields.row_steps or 1,
  due = due ~= '' and due or string.format('%.0f', now_ms() + ttl_ms),
}
redis.call('HSET', job, 'entry', add_entry(priority, entry_values))
local group = fields.group and key('group', fields.group)
if group and redis.call('EXISTS', group) == 1 then
  redis.call('HINCRBY', group, 'num_left', 1)
  redis.call('PEXPIRE', group, ttl_ms + result_ttl_ms)
end
return 1
