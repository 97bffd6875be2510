-- Visitors at the door, all of one event-loop turn: newcomers join, people whose turn it is claim their seat,
-- people whose pass has run out renew it. Each gets one answer:
--     inside <number> <end> | trial <number> <end> | wait <number> | moment <number> <ms> | ended | full | later
-- Later is for those about whom gateways may know more than the state does, while it gathers what they know.
-- Repeating a call (same gateway, same sequence) repeats its answer and changes nothing.
local function trial_allowed()
  local most = math.max(1, math.floor(math.min(config.total_active_users / 10, config.new_users_per_minute / 4)))
  return redis.call('ZCARD', TRIAL) < most
end

-- Newcomers never pass people who wait, nor somebody who joined so lately that they could not yet be seen.
local function may_walk_in()
  return num('candidates') == 0 and now >= num('bar_until') and free_seats() > 0
    and allowance('offer_tat') >= 1 and allowance('enter_tat') >= 1 and trial_allowed()
end

local function join(knock)
  local walk_in = may_walk_in()
  if not walk_in and (config.queueing_method == 'reject' or not knock.wait) then return { 'full' } end
  local n = num('issued') + 1
  put('issued', n)
  add('joined', 1)
  if walk_in then
    spend_share(1)
    spend('enter_tat', 1)
    add('admitted', 1)
    set_gone(n, 1)
    reserve(1)
    local ends = now + math.min(TRIAL_LIFE, session())
    redis.call('ZADD', TRIAL, ends + SLACK, knock.lane .. ':' .. n .. ':' .. knock.visitor)
    return { 'trial', n, ends }
  end
  if num('bar_from') == 0 then put('bar_from', n) end
  put('bar_until', now + BARRIER)
  return { 'wait', n }
end

-- A seat stands until a tick has ended it: in the calm after a pause that may be later than its score.
local function renew(seat, n)
  local ends = redis.call('ZSCORE', ACTIVE, seat)
  if ends and config.disable_session_renewal then
    local pass_ends = tonumber(ends) - SLACK
    return pass_ends > now and { 'inside', n, pass_ends } or nil
  end
  return (ends or redis.call('ZSCORE', TRIAL, seat)) and { 'inside', n, lease(seat) } or nil
end

local function claim(offer, seat, n)
  if gathering() then return { 'moment', n, num('gather_until') - now } end
  if allowance('enter_tat') < 1 then
    local wait = math.ceil(num('enter_tat') - now)
    redis.call('ZADD', OFFERS, 'GT', now + claim_window(), offer)
    return { 'moment', n, wait }
  end
  spend('enter_tat', 1)
  add('admitted', 1)
  reserve(1)
  redis.call('ZREM', OFFERS, offer)
  return { 'inside', n, lease(seat) }
end

local function answer(knock)
  local n = knock.epoch == config.epoch and knock.number or 0
  if n > 0 then
    local offer = knock.lane .. ':' .. n
    local seat = offer .. ':' .. knock.visitor
    local held = renew(seat, n)
    if held then return held end
    if redis.call('ZSCORE', OFFERS, offer) then return claim(offer, seat, n) end
    -- The seat of somebody with a pass may not have been handed in yet.
    if not is_gone(n) and not (gathering() and knock.join) then return { 'wait', n } end
  end
  -- Those who came while the store was away have their numbers first.
  if gathering() or (knock.join and redis.call('EXISTS', ARRIVALS) == 1) then return { 'later' } end
  return knock.join and join(knock) or { 'ended' }
end

local refused = open()
if refused then return refused end
local field = tostring(call.sequence % 1024)
local kept = redis.call('HGET', ANSWERS, field)
if kept then
  local sequence, text = kept:match('^(%d+) (.*)$')
  if tonumber(sequence) == call.sequence then return { 'ok', text } end
end
local answers = {}
for i, k in ipairs(call.knocks) do
  answers[i] = answer({ visitor = k[1], number = k[2], epoch = k[3], lane = k[4], join = k[5], wait = k[6] })
end
local ttl = close()
for seg = call.first, call.last do redis.call('PEXPIRE', gone_key(seg), ttl) end
local text = cjson.encode({ epoch = config.epoch, clock = now, issued = num('issued'), answers = answers })
redis.call('HSET', ANSWERS, field, string.format('%d %s', call.sequence, text))
redis.call('PEXPIRE', ANSWERS, 60000)
return { 'ok', text }
