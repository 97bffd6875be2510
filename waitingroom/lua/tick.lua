-- The regular exchange of a gateway with its room. In: who was seen, who made requests, who left. Then whatever
-- time has ended ends, and seats that are free are offered, lowest number first. Out: the snapshot.
-- It does not matter which gateway calls, nor how often: the limiter on the room's clock says how many enter.
local TOLD, FADE = 30000, 5000

local function parse_seat(seat)
  local lane, n = seat:match('^([^:]+):(%d+)')
  return lane, tonumber(n)
end

local function hand_in_left()
  for _, who in ipairs(call.left) do
    local lane, n = parse_seat(who)
    local seated = redis.call('ZREM', ACTIVE, who) + redis.call('ZREM', TRIAL, who)
    local offered = redis.call('ZREM', OFFERS, lane .. ':' .. n)
    -- The first word counts: saying it again must not prolong the list.
    local first = redis.call('ZADD', ENDED, 'NX', now, who) == 1
    if first and (seated == 1 or (offered == 0 and is_gone(n))) then reserve(-1) end
    if seated == 0 and (offered == 1 or not is_gone(n)) then add('abandoned', 1) end
    add('left', seated)
    set_gone(n, 1)
  end
end

local function hand_in_touched()
  for _, seat in ipairs(call.touched) do
    if not redis.call('ZSCORE', ENDED, seat) then
      local fixed = config.disable_session_renewal and redis.call('ZSCORE', ACTIVE, seat)
      if not fixed then
        local _, n = parse_seat(seat)
        set_gone(n, 1)
        lease(seat)
      end
    end
  end
end

-- A slot of the ring is emptied when its period begins: the room's clock need not run as fast as the TTLs.
-- `passed` follows the highest number called by one to two periods: whoever is still below it was passed over,
-- and is not just somebody whose first poll came in a little after a neighbour's.
local function turn_ring()
  local period = math.floor(now / PERIOD)
  if period == num('period') then return end
  put('passed', num('called_before'))
  put('called_before', num('called'))
  for p = math.max(num('period'), period - RING) + 1, period do
    for seg = call.first, call.last do redis.call('DEL', seen_key(seg, p)) end
  end
  put('period', period)
end

-- Marks numbers as seen in this period, and finds those that are spent (gone, and without an offer) and those
-- that missed their turn.
local function hand_in_seen()
  local spent, missed = {}, {}
  for _, n in ipairs(call.here) do set_held(n, 0) end
  for i, part in ipairs(call.seen) do
    local seg, packed = part.segment, ARGV[i + 1]
    local seen, gone = seen_key(seg, math.floor(now / PERIOD)), gone_key(seg)
    for at = 1, #packed, 4 do
      local offset = struct.unpack('<I4', packed, at)
      local n = seg * SEGMENT + offset
      if not gone then
        spent[#spent + 1] = n
      else
        redis.call('SETBIT', seen, offset, 1)
        if redis.call('GETBIT', gone, offset) == 1 and not redis.call('ZSCORE', OFFERS, part.lane .. ':' .. n) then
          spent[#spent + 1] = n
        elseif redis.call('GETBIT', held_key(part.segment), offset) == 1 then
          missed[#missed + 1] = n
        end
      end
    end
    if seen then redis.call('PEXPIRE', seen, config.presence_window * 1000 + 2 * PERIOD) end
  end
  return spent, missed
end

local function expire()
  if gathering() then return end
  local ended = redis.call('ZREMRANGEBYSCORE', ACTIVE, '-inf', now)
  add('expired', ended)
  reserve(-ended - redis.call('ZCOUNT', TRIAL, '-inf', now))
  for _, seat in ipairs(redis.call('ZRANGEBYSCORE', TRIAL, '-inf', now)) do
    local _, n = parse_seat(seat)
    set_gone(n, 0)
    add('vanished', 1)
  end
  redis.call('ZREMRANGEBYSCORE', TRIAL, '-inf', now)
  for _, offer in ipairs(redis.call('ZRANGEBYSCORE', OFFERS, '-inf', now)) do
    local _, n = parse_seat(offer)
    set_gone(n, 0)
    set_held(n, 1)
    add('lapsed', 1)
  end
  redis.call('ZREMRANGEBYSCORE', OFFERS, '-inf', now)
  redis.call('ZREMRANGEBYSCORE', ENDED, '-inf', '(' .. (now - num('session') - 2 * SLACK))
  redis.call('ZREMRANGEBYSCORE', ENTERED, '-inf', '(' .. (now - TOLD))
end

-- Leaves in `into` the bits of a segment seen within `window` and in none of the keys of `without`.
local function bits(into, seg, window, without)
  local keys, period = {}, math.floor(now / PERIOD)
  for p = period - math.ceil(window / PERIOD), period do keys[#keys + 1] = seen_key(seg, p) end
  redis.call('BITOP', 'OR', into, unpack(keys))
  for _, key in ipairs(without) do
    -- x and not y, spelled so that it is right for strings of different lengths
    redis.call('BITOP', 'AND', OVERLAP, into, key)
    redis.call('BITOP', 'XOR', into, into, OVERLAP)
  end
  return redis.call('BITCOUNT', into)
end

-- The lowest numbers of a segment in [lo, hi] whose bits are set in `key`, appended to `found` up to `limit`.
local function lowest(key, seg, lo, hi, limit, found)
  local base = seg * SEGMENT
  lo, hi = math.max(0, lo - base), math.min(SEGMENT - 1, hi - base)
  local from = math.floor(lo / 8)
  while #found < limit and from * 8 <= hi do
    local first = redis.call('BITPOS', key, 1, from)
    if first < 0 or first > hi then return end
    from = math.floor(first / 8)
    local chunk = redis.call('GETRANGE', key, from, from + 255)
    for i = 1, #chunk do
      local byte = chunk:byte(i)
      for b = 0, byte > 0 and 7 or -1 do
        local offset = (from + i - 1) * 8 + b
        if bit.band(byte, bit.rshift(128, b)) > 0 and offset >= lo and offset <= hi and #found < limit then
          found[#found + 1] = base + offset
        end
      end
    end
    from = from + 256
  end
end

-- People who come back to a number already passed over take at most half of the seats while others wait.
local function shares(seats, returning, regular)
  if #regular == 0 then return math.min(seats, #returning), 0 end
  local credit = num('return_credit') + seats / 2
  local back = math.min(#returning, math.floor(credit))
  put('return_credit', math.min(1, credit - back))
  local fresh = math.min(#regular, seats - back)
  return math.min(#returning, seats - fresh), fresh
end

local function offer(n)
  set_gone(n, 1)
  redis.call('ZADD', OFFERS, now + claim_window(), 'main:' .. n)
end

-- Offers the free seats, lowest number first, and returns how many candidates are left without one.
local function admit()
  local candidates, seats = 0, math.min(free_seats(), allowance('offer_tat'))
  local returning, regular, passed = {}, {}, num('passed')
  for seg = call.first, call.last do
    local key = candidates_key(seg)
    candidates = candidates + bits(key, seg, RECENT, { gone_key(seg), held_key(seg) })
    lowest(key, seg, 0, passed, seats, returning)
    lowest(key, seg, passed + 1, num('issued'), seats, regular)
    redis.call('DEL', key)
  end
  local back, fresh = shares(seats, returning, regular)
  for i = 1, back do offer(returning[i]) end
  for i = 1, fresh do offer(regular[i]) end
  if fresh > 0 then put('called', math.max(num('called'), regular[fresh])) end
  if back + fresh > 0 then spend_share(back + fresh) end
  add('offered', back + fresh)
  return candidates - back - fresh
end

-- Walk-ins are barred while somebody told to wait could not yet be seen. Once every such number was seen or is
-- gone, they need not wait out the full time.
local function lift_barrier()
  local n = num('bar_from')
  if n == 0 or num('candidates') > 0 then return end
  local period = math.floor(now / PERIOD)
  local function heard(number)
    local seg = segment_of(number)
    return is_gone(number) or redis.call('GETBIT', seen_key(seg, period), number % SEGMENT) == 1
      or redis.call('GETBIT', seen_key(seg, period - 1), number % SEGMENT) == 1
  end
  local last = math.min(num('issued'), n + 10000)
  while n <= last and heard(n) do n = n + 1 end
  if n > num('issued') or now >= num('bar_until') then
    put('bar_from', 0)
    put('bar_until', 0)
  else
    put('bar_from', n)
  end
end

-- A segment goes when its last ticket has ended; people who have waited for that long are still there.
local function drop_segments(parts)
  local last = segment_of(num('issued'))
  for seg = call.first, last - 1 do
    local field = 'filled_' .. string.format('%d', seg)
    if not state[field] then put(field, now) end
    local over = now - num(field) > config.hold_for * 1000 and parts[seg - call.first + 1] == ''
    if seg == num('first_segment') and over then
      redis.call('DEL', gone_key(seg), held_key(seg))
      redis.call('HDEL', STATE, field)
      state[field] = nil
      put('first_segment', seg + 1)
    end
  end
end

-- What gateways saw of the storefront fades over some seconds of the room's clock. What follows from it is theirs to
-- decide: the share of the rate at which people are let in.
local function weigh_origin()
  local faded = math.exp(-(now - num('weighed')) / FADE)
  put('weighed', now)
  put('asked', num('asked') * faded + call.asked)
  put('failed', num('failed') * faded + call.failed)
  put('share', call.share)
end

-- Milliseconds until the limiter alone would let a good part of a tick's seats go, so that a rate that does
-- not divide by the tick is reached all the same; nil when something else holds people back.
local function again()
  if num('candidates') == 0 or free_seats() == 0 then return nil end
  local burst = math.max(1, tick / interval())
  local wanted = math.max(1, math.floor(burst) - 1)
  return math.max(0, num('offer_tat') - now - (burst - wanted) * interval())
end

local function waiting_bits()
  local parts, waiting, present = {}, 0, 0
  for seg = call.first, call.last do
    present = present + bits(BITS, seg, RECENT, { gone_key(seg) })
    local here = bits(BITS, seg, config.presence_window * 1000, { gone_key(seg) })
    waiting = waiting + here
    parts[#parts + 1] = here > 0 and redis.call('GET', BITS) or ''
  end
  redis.call('DEL', BITS, OVERLAP)
  return parts, waiting, present
end

local function totals()
  local all = {}
  for _, name in ipairs({ 'joined', 'offered', 'admitted', 'lapsed', 'left', 'expired', 'vanished', 'abandoned' }) do
    all[name] = num(name)
  end
  return all
end

local refused = open()
if refused then return refused end
local spent, missed = {}, {}
turn_ring()
if call.epoch == config.epoch then
  hand_in_left()
  hand_in_testimony()
  hand_in_touched()
  spent, missed = hand_in_seen()
  hand_in_arrivals()
  heed_old_passes()
end
attend()
weigh_origin()
expire()
put('candidates', admit())
lift_barrier()
number_arrivals()
local parts, waiting, present = waiting_bits()
local digest = redis.sha1hex(table.concat(parts, ';'))
local reply = {
  clock = now, stamp = num('stamp'), born = num('born'), fence = num('fence'), epoch = config.epoch,
  issued = num('issued'), first = call.first, last = call.last,
  inside = inside(), taken = math.max(inside(), reserved()), offered = redis.call('ZCARD', OFFERS), waiting = waiting, present = present,
  candidates = num('candidates'), totals = totals(), spent = spent, missed = missed, again = again(), digest = digest,
  calm = math.max(0, num('calm_until') - now, num('gather_until') - now),
  asked = num('asked'), failed = num('failed'), share = share(),
  gateways = redis.call('ZRANGE', GATEWAYS, 0, -1),
  entered = redis.call('ZRANGEBYSCORE', ENTERED, call.ended_since, '+inf'),
  blocks = redis.call('LRANGE', BLOCKS, call.blocks, -1),
  lease_end = not config.disable_session_renewal and now + session() or nil,
  offers = redis.call('ZRANGE', OFFERS, 0, -1, 'WITHSCORES'),
  ended = redis.call('ZRANGEBYSCORE', ENDED, call.ended_since, '+inf'),
}
drop_segments(parts)
local ttl = close()
for seg = call.first, call.last do
  redis.call('PEXPIRE', gone_key(seg), ttl)
  redis.call('PEXPIRE', held_key(seg), ttl)
end
local text = config.version ~= call.version and redis.call('GET', CONFIG) or ''
return { 'ok', cjson.encode(reply), text, digest ~= call.digest and parts or {} }
