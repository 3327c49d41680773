-- Create the streams and their groups where they are missing. A group starts at 0: it also reads what
-- was put before it was there.

for _, priority in ipairs(PRIORITIES) do
  local made = redis.pcall('XGROUP', 'CREATE', key('stream', priority), GROUP, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then
    return made
  end
end
return 1
