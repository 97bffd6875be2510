-- What gateways know when the state may not: see `resume` in room.lua. Everything here may be said again, by any
-- number of gateways in any order, and in parts.
local PRESENT = 15000

-- Times of an earlier incarnation, whose clock may have been behind this one's.
local function later()
  local told = call.testimony
  if told.clock == 0 or told.born == num('born') then return 0 end
  return math.max(0, num('gather_from') - told.clock)
end

-- A seat that somebody vouches for keeps the later end; a number with a seat holds no offer any more.
local function restore_seat(seat, ends, key)
  local other = key == TRIAL and ACTIVE or TRIAL
  if redis.call('ZSCORE', ENDED, seat) or (key == TRIAL and redis.call('ZSCORE', other, seat)) then return end
  local lane, n = seat:match('^([^:]+):(%d+)')
  redis.call('ZREM', other, seat)
  redis.call('ZADD', key, 'GT', ends + later() + SLACK, seat)
  redis.call('ZREM', OFFERS, lane .. ':' .. n)
  set_gone(tonumber(n), 1)
end

-- A number that is gone and holds no offer has taken it up already.
local function restore_offer(n, deadline)
  if is_gone(n) or deadline + later() <= now then return end
  set_gone(n, 1)
  redis.call('ZADD', OFFERS, deadline + later(), 'main:' .. n)
end

-- Rows of numbers that were given to arrivals: gateway, second, the first in that second, how many, first number.
local function restore_block(rows)
  local new = {}
  for _, row in ipairs(rows) do
    local field, upto = row[1] .. ' ' .. string.format('%d', row[2]), row[3] + row[4]
    if tonumber(redis.call('HGET', NUMBERED, field) or 0) < upto then
      redis.call('HSET', NUMBERED, field, upto)
      new[#new + 1] = row
    end
  end
  if #new > 0 then redis.call('RPUSH', BLOCKS, cjson.encode(new)) end
end

-- Bits of numbers that have entered, then of those who waited, of the segments that are still live.
local function restore_bits()
  local entered, line = call.testimony.entered, call.testimony.line
  local before = #ARGV - #entered - #line
  local function add_to(key, i)
    if not key then return end
    redis.call('SET', BITS, ARGV[before + i])
    redis.call('BITOP', 'OR', key, key, BITS)
  end
  for i, part in ipairs(entered) do add_to(gone_key(part.segment), i) end
  for i, part in ipairs(line) do
    local seen = segment_key(part.segment, 1) and seen_key(part.segment, math.floor(now / PERIOD))
    add_to(seen, #entered + i)
    if seen then redis.call('PEXPIRE', seen, config.presence_window * 1000 + 2 * PERIOD) end
  end
  redis.call('DEL', BITS)
end

local function hand_in_testimony()
  local told = call.testimony
  if not told then return end
  for _, seat in ipairs(told.ended) do
    redis.call('ZADD', ENDED, 'NX', now, seat)
    redis.call('ZREM', ACTIVE, seat)
    redis.call('ZREM', TRIAL, seat)
  end
  for _, row in ipairs(told.leases) do restore_seat(row[1], row[2], ACTIVE) end
  for _, row in ipairs(told.trials) do restore_seat(row[1], row[2], TRIAL) end
  for _, row in ipairs(told.offers) do restore_offer(row[1], row[2]) end
  restore_block(told.numbered)
  restore_bits()
end

-- People who came while the store was away, as counts by gateway and second.
local function hand_in_arrivals()
  for _, row in ipairs(call.arrivals) do
    local field = row[1] .. ' ' .. string.format('%d', row[2])
    if row[3] > tonumber(redis.call('HGET', ARRIVALS, field) or 0) then redis.call('HSET', ARRIVALS, field, row[3]) end
  end
end

-- A pass from before this state began, in a room that was taken for new: seats may be out there of which nobody
-- knows how many.
local function heed_old_passes()
  if num('blind') == 0 or not call.lowest or call.lowest > num('base') then return end
  put('blind', 0)
  put('calm_until', now + session())
end

-- Who is there; and whether everybody who was has said what they know. Whoever stops says goodbye.
local function attend()
  if call.goodbye then
    redis.call('ZREM', GATEWAYS, call.gateway)
  elseif not gathering() or call.vouched == num('fence') then
    redis.call('ZADD', GATEWAYS, now, call.gateway)
  else
    redis.call('ZADD', GATEWAYS, 'NX', num('gather_from') - 1, call.gateway)
  end
  if not gathering() then
    redis.call('ZREMRANGEBYSCORE', GATEWAYS, '-inf', now - PRESENT)
  elseif redis.call('ZCOUNT', GATEWAYS, '-inf', '(' .. num('gather_from')) == 0 then
    gathered()
  end
end

-- Numbers for everybody who came meanwhile, in the order of their seconds. From the next call on these wait as all
-- others do, and until they can have been heard of nobody walks in past them.
local function number_arrivals()
  if gathering() or redis.call('EXISTS', ARRIVALS) == 0 then return end
  local flat, rows, first = redis.call('HGETALL', ARRIVALS), {}, num('issued') + 1
  for i = 1, #flat, 2 do
    local gateway, second = flat[i]:match('^(%S+) (%d+)$')
    local done, upto = tonumber(redis.call('HGET', NUMBERED, flat[i]) or 0), tonumber(flat[i + 1])
    if upto > done then rows[#rows + 1] = { gateway, tonumber(second), done, upto - done } end
  end
  redis.call('DEL', ARRIVALS)
  if #rows == 0 then return end
  table.sort(rows, function(a, b)
    if a[2] ~= b[2] then return a[2] < b[2] end
    if a[1] ~= b[1] then return a[1] < b[1] end
    return a[3] < b[3]
  end)
  for _, row in ipairs(rows) do
    row[5] = num('issued') + 1
    put('issued', num('issued') + row[4])
    add('joined', row[4])
    redis.call('HSET', NUMBERED, row[1] .. ' ' .. string.format('%d', row[2]), row[3] + row[4])
  end
  redis.call('RPUSH', BLOCKS, cjson.encode(rows))
  if num('bar_from') == 0 then put('bar_from', first) end
  put('bar_until', now + 2 * BARRIER)
end
