-- A reader does not go on. If it was called and has not looked, somebody else is.
-- ARGV: reader.

local reader = ARGV[1]
leave_ready(reader)
if redis.call('DEL', key('call', reader)) == 1 then
  for _, priority in ipairs(PRIORITIES) do
    if redis.call('EXISTS', key('waiting', priority)) == 1 then
      call_reader(priority)
    end
  end
end
