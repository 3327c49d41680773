-- Say that a worker is alive for another ttl_ms; ttl 0 says that it leaves.
-- ARGV: worker, info (JSON), ttl_ms.

local worker, info, ttl_ms = ARGV[1], ARGV[2], tonumber(ARGV[3])
if ttl_ms <= 0 then
  forget_worker(worker)
  return
end
go_on_when_full()
redis.call('ZADD', root .. ':alive', now_ms() + ttl_ms, worker)
redis.call('HSET', root .. ':workers', worker, info)
