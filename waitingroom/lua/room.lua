-- What every script of a room shares: its keys, its clock, its limiters, its bitmaps.
--
-- Invariant: order lives in ticket numbers. `gone` has the bit of every number that was offered a seat, is
-- inside, or has finished; `held` of every number that missed its turn; `seen` of everybody heard of lately.
--     waiting    = seen in a kept period, and not gone
--     candidates = seen in the last 75 s, and neither gone nor held
--
-- KEYS  config state offers active trial ended answers audit scratch scratch gateways entered arrivals numbered
--       blocks, then for each live segment: gone held candidates seen[0..63]
-- ARGV  1: the call as JSON; its `first` and `last` name the segments whose keys were passed; then binary parts.
local SEGMENT, RING, PERIOD = 1048576, 64, 15000
local HEAD, PER_SEGMENT = 15, 67
local CONFIG, STATE, OFFERS, ACTIVE = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local TRIAL, ENDED, ANSWERS, AUDIT = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local BITS, OVERLAP, GATEWAYS, ENTERED = KEYS[9], KEYS[10], KEYS[11], KEYS[12]
local ARRIVALS, NUMBERED, BLOCKS = KEYS[13], KEYS[14], KEYS[15]
local SLACK, CALM, BARRIER, TRIAL_LIFE, RECENT = 3000, 10000, 5000, 30000, 75000
local SKIP, YOUNG, FARTHEST, DAY = 10000, 60000, 16, 86400000

local call = cjson.decode(ARGV[1])
local known = call.known or {}
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
-- While the storefront is in trouble each seat that is offered costs more of the rate; at a share of 0 there is none.
local function share() return tonumber(state.share or 1) end
local function spend_share(k) spend('offer_tat', share() > 0 and k / share() or k) end

local function inside() return redis.call('ZCARD', ACTIVE) + redis.call('ZCARD', TRIAL) end
local function gathering() return now < num('gather_until') end
-- Seats that were taken when a state was lost count until they are given back, or until none can be left.
local function reserved() return now < num('reserve_until') and num('reserve') or 0 end
local function reserve(k)
  if reserved() > 0 then put('reserve', math.max(0, num('reserve') + k)) end
end
local function free_seats()
  local held = gathering() or now < num('calm_until') or share() <= 0
  if config.paused or config.queue_all or held then return 0 end
  local taken = math.max(inside(), reserved()) + redis.call('ZCARD', OFFERS)
  return math.max(0, config.total_active_users - taken)
end
-- Whole milliseconds, so that every time in the store is a whole number.
local function session() return math.floor(config.session_duration * 1000 + 0.5) end
local function claim_window() return math.floor(config.claim_window * 1000 + 0.5) end
local function lease(seat)
  redis.call('ZREM', TRIAL, seat)
  if redis.call('ZADD', ACTIVE, now + session() + SLACK, seat) == 1 then
    redis.call('ZADD', ENTERED, now, seat:match(':(%d+)'))
  end
  return now + session()
end

local function live_segments()
  return num('first_segment'), segment_of(num('issued') + (call.knocks and #call.knocks or 0) + 1)
end

local function wipe()
  redis.call('DEL', OFFERS, ACTIVE, TRIAL, ENDED, ENTERED, ARRIVALS, NUMBERED, BLOCKS)
  for i = HEAD + 1, #KEYS do redis.call('DEL', KEYS[i]) end
  for _, name in ipairs({ 'bar_from', 'bar_until', 'candidates', 'called', 'called_before', 'passed' }) do
    put(name, 0)
  end
  -- An epoch that was lost with the state is being restored: seats of it may be out there.
  if not gathering() then put('reserve', 0) end
  put('epoch', config.epoch)
end

-- From here on gateways may know more than the state does: it stood still, is another server's, or is gone. Until
-- each has said what it knows, or had ten seconds to, no number is given, nobody is called and nothing expires.
-- The fence counts these times: whoever knows a higher one than a server's state does is not answered by it.
local function resume(lost)
  put('fence', math.max(num('fence'), known.fence or 0) + 1)
  put('clock', num('clock') + 1)
  now = num('clock')
  put('gather_from', now)
  put('gather_until', now + CALM)
  if lost then
    put('skip', SKIP)
    put('reserve', math.max(reserved(), known.inside or 0))
    put('reserve_until', now + session())
  end
end

-- What a gateway knows of the room's clock counts more than an older state.
local function catch_up()
  local ahead = (known.clock or 0) - num('clock')
  if ahead > 0 then
    put('clock', known.clock)
    now = num('clock')
    if num('gather_until') > 0 then put('gather_until', num('gather_until') + ahead) end
    put('reserve_until', num('reserve_until') + ahead)
  end
end

-- Numbers from `seg` on still count, however far the state began above them; but not without end.
local function reach_back(seg)
  local farthest = segment_of(num('issued')) - FARTHEST
  put('first_segment', math.min(num('first_segment'), math.max(farthest, seg)))
end

-- Numbers that only gateways which are gone could have vouched for are left out.
local function gathered()
  put('gather_until', 0)
  put('issued', num('issued') + num('skip'))
  put('skip', 0)
end

-- Which process this is. A user who may not ask leaves only the gap in time to go by.
local function this_server()
  local told = redis.pcall('INFO', 'server')
  return type(told) == 'string' and told:match('run_id:(%w+)') or ''
end

-- Those who ticked with the state that was lost have something to say about it.
local function await_gateways()
  for _, name in ipairs(known.gateways or {}) do redis.call('ZADD', GATEWAYS, 'NX', num('gather_from') - 1, name) end
  redis.call('PEXPIRE', GATEWAYS, DAY)
end

-- A new incarnation continues above every number that anybody vouches for; without a voucher it begins far
-- above any earlier one, and unless the room itself is new nobody enters until old leases have run out.
local function begin(time)
  local vouched = (known.clock or 0) > 0 and (known.issued or 0) > 0
  state = { clock = vouched and known.clock or time, stamp = time, born = time, epoch = config.epoch }
  state.server = this_server()
  now = num('clock')
  put('issued', vouched and known.issued or math.floor(time / 1000) * 1000)
  put('first_segment', segment_of(num('issued') + 1))
  if vouched then
    resume(true)
    await_gateways()
  else
    put('base', num('issued'))
    if call.seed then put('blind', 1) else put('calm_until', now + session()) end
  end
end

-- The room's clock follows the store's by at most three ticks a call, and never goes back. A longer gap was a
-- pause: nothing expires and nobody is called until gateways had time to hand in what they kept.
local function advance(time)
  local gap = math.max(0, time - num('stamp'))
  put('stamp', time)
  put('clock', num('clock') + math.min(gap, 3 * tick))
  now = num('clock')
  if gap > 3 * tick then resume(false) end
end

-- A server that was frozen while another took its place thaws with an old state. It is not believed for as long
-- as it takes the others to depose it; who is still sent here after that has no other.
local function is_outdated(time, server)
  local behind = server == state.server and (known.fence or 0) > num('fence')
  if not behind or time - num('born') < YOUNG then return false end
  local doubted = time - num('doubted')
  if doubted > YOUNG then redis.call('HSET', STATE, 'doubted', time) end
  return doubted > YOUNG or doubted < CALM
end

local function follow(time, server)
  if is_outdated(time, server) then return false end
  advance(time)
  -- Whoever knows another incarnation of the state, or more of this one, has something to say.
  local reborn = (known.born or num('born')) ~= num('born')
  if reborn or server ~= state.server or (known.fence or 0) > num('fence') then
    catch_up()
    resume(true)
    if reborn then await_gateways() end
    put('doubted', 0)
  end
  put('server', server)
  return true
end

local function open()
  local text = redis.call('GET', CONFIG)
  if not text then return { 'missing' } end
  config, tick = cjson.decode(text), call.tick
  local flat = redis.call('HGETALL', STATE)
  state = {}
  for i = 1, #flat, 2 do state[flat[i]] = flat[i + 1] end
  -- A store that takes no writes refuses this one, before anything has changed.
  redis.call('SET', BITS, '', 'PX', 60000)
  local time = store_time()
  if #flat == 0 then
    begin(time)
  elseif not follow(time, this_server()) then
    return { 'outdated' }
  end
  put('issued', math.max(num('issued'), known.issued or 0))
  if gathering() then
    catch_up()
    if num('skip') > 0 then
      put('reserve', math.max(num('reserve'), known.inside or 0))
      if known.first then reach_back(known.first) end
    end
  elseif call.oldest and call.oldest < num('base') then
    -- A ticket from before a state that nobody vouched for.
    reach_back(segment_of(call.oldest))
  end
  if num('gather_until') > 0 and not gathering() then gathered() end
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
  for _, key in ipairs({ STATE, OFFERS, ACTIVE, TRIAL, ENDED, GATEWAYS, ENTERED, ARRIVALS, NUMBERED, BLOCKS }) do
    redis.call('PEXPIRE', key, ttl)
  end
  return ttl
end
