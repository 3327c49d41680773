-- Live workers as {name, info (JSON), ...}; those whose announcement expired are forgotten.

for _, worker in ipairs(redis.call('ZRANGEBYSCORE', root .. ':alive', '-inf', now_ms())) do
  forget_worker(worker)
end
return redis.call('HGETALL', root .. ':workers')
