-- Add an event to a job that has not ended, with a preview's bytes under a key of their own.
-- ARGV: id, waiting_ttl_ms, result_ttl_ms, kind, data (JSON), blob or ''.

local id, blob = ARGV[1], ARGV[6]
local status = redis.call('HGET', key('job', id), 'status')
if not status or FINAL[status] then
  return 0
end
local blob_key
if blob ~= '' then
  local number = redis.call('HINCRBY', key('job', id), 'num_blobs', 1)
  blob_key = key('blob', id) .. ':' .. number
  redis.call('SET', blob_key, blob, 'PX', ARGV[3])
end
add_event(id, ARGV[2], ARGV[4], ARGV[5], blob_key)
return 1
