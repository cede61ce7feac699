-- What Lua programs do: tables, closures, strings and patterns, coroutines, metatables, errors, garbage.
local rounds = tonumber(arg and arg[1]) or 100

local function queens(n)
  local found, columns, up, down = 0, {}, {}, {}
  local function place(row)
    if row > n then found = found + 1 return end
    for c = 1, n do
      if not (columns[c] or up[row + c] or down[row - c]) then
        columns[c], up[row + c], down[row - c] = true, true, true
        place(row + 1)
        columns[c], up[row + c], down[row - c] = nil, nil, nil
      end
    end
  end
  place(1)
  return found
end

local Vector = {}
Vector.__index = Vector
Vector.__add = function(a, b) return setmetatable({ x = a.x + b.x, y = a.y + b.y }, Vector) end

local function primes()
  return coroutine.wrap(function()
    local known = {}
    for n = 2, math.huge do
      local prime = true
      for _, p in ipairs(known) do
        if p * p > n then break end
        if n % p == 0 then prime = false break end
      end
      if prime then known[#known + 1] = n coroutine.yield(n) end
    end
  end)
end

local digest = 0
local function note(value)
  for c in tostring(value):gmatch(".") do digest = (digest * 31 + c:byte()) & 0x7fffffffffffffff end
end

for round = 1, rounds do
  note(queens(7))
  local sum = setmetatable({ x = 0, y = 0.5 }, Vector)
  for i = 1, 2000 do sum = sum + setmetatable({ x = i, y = i / 3 }, Vector) end
  note(string.format("%d %.6f", sum.x, sum.y))
  local words, n = {}, 0
  for word in (("the quick brown fox %d jumps over the lazy dog "):format(round)):rep(50):gmatch("%w+") do
    n = n + 1
    words[n] = word:reverse():upper() .. n % 7
  end
  table.sort(words)
  note(table.concat(words, ",", 1, 20))
  local last
  local next_prime = primes()
  for _ = 1, 500 do last = next_prime() end
  note(last)
  local fine, why = pcall(function() error({ code = round }) end)
  note(tostring(fine) .. why.code)
  if round % 50 == 0 then print("round " .. round) io.stdout:flush() end
end
print(string.format("answer: %s, digest %016x, pi %.14f", _VERSION, digest, math.pi))
