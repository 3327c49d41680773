-- Restart the leases that the worker still holds; the bare XCLAIM would take them back from a new owner.
-- ARGV: worker, lease_ms, then for each delivery: priority, entry, id. Returns the ids whose lease is lost.

local worker = ARGV[1]
local lost = {}
go_on_when_full()
leases_count(tonumber(ARGV[2]))
for i = 3, #ARGV, 3 do
  local stream = key('stream', ARGV[i])
  if lease(stream, ARGV[i + 1]) == worker then
    redis.call('XCLAIM', stream, GROUP, worker, 0, ARGV[i + 1], 'JUSTID')
  else
    lost[#lost + 1] = ARGV[i + 2]
  end
end
return lost
