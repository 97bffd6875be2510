-- The store's own time in milliseconds. A file by itself so that a test may put another clock in its place.
local function store_time()
  local t = redis.call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end
