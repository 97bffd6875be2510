-- What every script of a room shares: its keys, its clock, its limiters, its bitmaps.
--
-- Invariant: order lives in ticket numbers. `gone` has the bit of every number that was offered a seat, is
-- inside, or has finished; `held` of every number that missed its turn; `seen` of everybody heard of lately.
--     waiting    = seen in a kept period, and not gone
--     candidates = seen in the last 75 s, and neither gone nor held
--
-- KEYS  config state offers active trial ended answers audit scratch scratch,
--       then for each live segment: gone held candidates seen[0..63]
-- ARGV  1: the call as JSON; its `first` and `last` name the segments whose keys were passed; then binary parts.
local SEGMENT, RING, PERIOD = 1048576, 64, 15000
local HEAD, PER_SEGMENT = 10, 67
local CONFIG, STATE, OFFERS, ACTIVE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local TRIAL, ENDED, ANSWERS, AUDIT = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local BITS, OVERLAP = KEYS[9], KEYS[10]
local SLACK, CALM, BARRIER, TRIAL_LIFE, RECENT = 3000, 10000, 5000, 30000, 75000
local DAY = 86400000

local call = cjson.decode(ARGV[1])
local config, state, now, tick

local function num(name) return tonumber(state[name] or 0) end
local function put(name, value)
  state[name] = type(value) == 'number' and string.format('%.3f', value):gsub('%.?0+$', '', 1) or value
end
local function add(name, k) put(name, num(name) + k) end

local function segment_of(n) return math.floor(n / SEGMENT) end
-- A segment that is no longer live has no keys; every number in it is spent.
local function segment_key(seg, which)
  if seg < call.first or seg > call.last then return nil end
  return KEYS[HEAD + (seg - call.first) * PER_SEGMENT + which]
end
local function gone_key(seg) return segment_key(seg, 1) end
local function held_key(seg) return segment_key(seg, 2) end
local function candidates_key(seg) return segment_key(seg, 3) end
local function seen_key(seg, period) return segment_key(seg, 4 + period % RING) end

local function set_bit(key, n, value)
  if key then redis.call('SETBIT', key, n % SEGMENT, value) end
end
local function set_gone(n, value) set_bit(gone_key(segment_of(n)), n, value) end
local function set_held(n, value) set_bit(held_key(segment_of(n)), n, value) end
local function is_gone(n)
  local key = gone_key(segment_of(n))
  return key == nil or redis.call('GETBIT', key, n % SEGMENT) == 1
end

-- GCRA: `interval` milliseconds apart, with a burst of one tick's worth and at least one.
local function interval() return 60000 / config.new_users_per_minute end
local function allowance(limiter)
  local burst = math.max(1, tick / interval())
  local ahead = math.max(num(limiter) - now, 0) / interval()
  return math.max(0, math.floor(burst - ahead + 0.000001))
end
local function spend(limiter, k) put(limiter, math.max(num(limiter), now) + k * interval()) end

local function inside() return redis.call('ZCARD', ACTIVE) + redis.call('ZCARD', TRIAL) end
local function reserved() return now < num('reserve_until') and num('reserve') or 0 end
local function free_seats()
  if config.paused or config.queue_all or now < num('calm_until') then return 0 end
  local taken = math.max(inside(), reserved()) + redis.call('ZCARD', OFFERS)
  return math.max(0, config.total_active_users - taken)
end
-- Whole milliseconds, so that every time in the store is a whole number.
local function session() return math.floor(config.session_duration * 1000 + 0.5) end
local function claim_window() return math.floor(config.claim_window * 1000 + 0.5) end
local function lease(seat)
  redis.call('ZREM', TRIAL, seat)
  redis.call('ZADD', ACTIVE, now + session() + SLACK, seat)
  return now + session()
end

local function live_segments()
  return num('first_segment'), segment_of(num('issued') + (call.knocks and #call.knocks or 0) + 1)
end

local function wipe()
  redis.call('DEL', OFFERS, ACTIVE, TRIAL, ENDED)
  for i = HEAD + 1, #KEYS do redis.call('DEL', KEYS[i]) end
  for _, name in ipairs({ 'bar_from', 'bar_until', 'candidates', 'called', 'called_before', 'passed', 'reserve' }) do
    put(name, 0)
  end
  put('epoch', config.epoch)
end

-- A new incarnation continues above every number that anybody vouches for; without a voucher it begins far
-- above any earlier one, and unless the room itself is new nobody enters until old leases have run out.
local function begin(time)
  local known = call.known or {}
  state = { clock = math.max(time, known.clock or 0), stamp = time, epoch = config.epoch }
  now = num('clock')
  if (known.issued or 0) > 0 then
    put('issued', known.issued + 10000)
    put('reserve', known.inside or 0)
    put('reserve_until', now + session())
  else
    put('issued', math.floor(time / 1000) * 1000)
    if not call.seed then put('calm_until', now + session()) end
  end
  put('first_segment', segment_of(num('issued') + 1))
end

-- The room's clock follows the store's by at most three ticks a call, and never goes back. A longer gap was a
-- pause: nothing expires and nobody is called until gateways had time to hand in what they kept.
local function advance(time)
  local gap = math.max(0, time - num('stamp'))
  if gap > 3 * tick then
    gap = 3 * tick
    put('calm_until', math.max(num('calm_until'), num('clock') + gap + CALM))
  end
  put('stamp', time)
  put('clock', num('clock') + gap)
  now = num('clock')
end

local function open()
  local text = redis.call('GET', CONFIG)
  if not text then return { 'missing' } end
  config, tick = cjson.decode(text), call.tick
  local flat = redis.call('HGETALL', STATE)
  state = {}
  for i = 1, #flat, 2 do state[flat[i]] = flat[i + 1] end
  local time = store_time()
  if #flat == 0 then begin(time) else advance(time) end
  if num('issued') < (call.known and call.known.issued or 0) then put('issued', call.known.issued) end
  local first, last = live_segments()
  if call.first ~= first or call.last < last then return { 'segments', first, last } end
  if num('epoch') ~= config.epoch then wipe() end
  put('session', math.max(num('session'), session()))
  return nil
end

local function close()
  local flat = {}
  for name, value in pairs(state) do
    flat[#flat + 1] = name
    flat[#flat + 1] = value
  end
  redis.call('HSET', STATE, unpack(flat))
  local ttl = math.max(DAY, config.hold_for * 1000) + DAY
  for _, key in ipairs({ STATE, OFFERS, ACTIVE, TRIAL, ENDED }) do redis.call('PEXPIRE', key, ttl) end
  return ttl
end
