-- Add events to jobs that have not ended, with a preview's bytes under a key of their own.
-- ARGV: waiting_ttl_ms, result_ttl_ms, then for each event: id, kind, data (JSON), blob or ''.

for i = 3, #ARGV, 4 do
  local id, kind, data, blob = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3]
  local status = redis.call('HGET', key('job', id), 'status')
  if status and not FINAL[status] then
    local blob_key
    if blob ~= '' then
      local number = redis.call('HINCRBY', key('job', id), 'num_blobs', 1)
      blob_key = key('blob', id) .. ':' .. number
      redis.call('SET', blob_key, blob, 'PX', ARGV[2])
    end
    add_event(id, ARGV[1], kind, data, blob_key)
  end
end
