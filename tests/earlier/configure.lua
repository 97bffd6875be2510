-- Changes a room's configuration if nobody else has changed it meanwhile, and writes down who did and why.
-- Seeding creates a room that the store does not know, and leaves one that it knows alone.
local text = redis.call('GET', CONFIG)
if call.seed then
  if text then return { 'ok', text } end
  redis.call('SET', CONFIG, call.config)
  config, tick = cjson.decode(call.config), call.tick
  if redis.call('EXISTS', STATE) == 0 then
    begin(store_time())
    close()
  end
  return { 'ok', call.config }
end
if not text then return { 'missing' } end
if cjson.decode(text).version ~= call.version then return { 'conflict', text } end
redis.call('SET', CONFIG, call.config)
redis.call('XADD', AUDIT, 'MAXLEN', '~', '10000', '*', 'entry', call.entry)
redis.call('PEXPIRE', AUDIT, 400 * DAY)
return { 'ok', call.config }
