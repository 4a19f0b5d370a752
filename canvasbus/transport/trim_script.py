"""The Lua of retention: what of a stream may go, and what is told of it. The rules are those of `scripts`."""

from typing import Final

from canvasbus.transport.scripts import LACKS, Script

TRIM: Final = Script(
    "trim",
    LACKS
    + """
-- Remove the oldest entries of a stream as far as its targets ask for it and no group that counts still needs them.
-- KEYS[1] the stream; KEYS[2] marks: now and then an entry id, by how many entries had been added when it was the last;
-- KEYS[3] hash of declarations; KEYS[4] stream of bus.loss; KEYS[5] topics; KEYS[6..] cursors of the groups that count
-- ARGV[1] age in ms (0: any); [2] entries to keep at most (0: any); [3] bytes to keep at most (0: any); [4] cap: how many
-- there may be, handled or not (0: any); [5] 1: above the cap remove what is not handled too, and tell; [6] how many
-- groups were declared when it was found out which count: one that came since might have to read what would go; [7] how
-- many count; [8] how long after a group was made anew its workers may not have said yet what they hold of it, in s; [9..]
-- the names of those; then of these; then, if [5], for each of these its bus.loss in four pieces: what comes before its
-- detail, how the detail begins, what lies between it and how many are lost, and the rest
-- Returns entries left, entries removed, the groups that keep older entries than the targets ask for (the one that has
-- handled least; when the cap is reached, those too that have not handled the first entry left), 1 when the cap is reached,
-- 1 when there is more to remove at once, the first entry left; then for each group that had not handled all that was
-- removed: its name, how many of these, the first of them. Entries removed is -1, and nothing was done, when other groups
-- are declared by now
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then return {0, 0, {}, 0, 0, ''} end
local facts = {}
for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
local counting = 9 + tonumber(ARGV[6])
local last_counting = counting + tonumber(ARGV[7]) - 1
if redis.call('HLEN', KEYS[3]) ~= counting - 9 then return {0, -1, {}, 0, 0, ''} end
for i = 9, counting - 1 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then return {0, -1, {}, 0, 0, ''} end
end
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local length, added, last = facts['length'], facts['entries-added'] or facts['length'], facts['last-generated-id']
local function before(a, b)
  local a1, a2 = string.match(a, '^(%d+)-?(%d*)$')
  local b1, b2 = string.match(b, '^(%d+)-?(%d*)$')
  -- As text, by length first: a number of Lua cannot hold every part of an id.
  if #a1 ~= #b1 then return #a1 < #b1 end
  if a1 ~= b1 then return a1 < b1 end
  a2, b2 = a2 == '' and '0' or a2, b2 == '' and '0' or b2
  if #a2 ~= #b2 then return #a2 < #b2 end
  return a2 < b2
end
local function after(id)  -- the smallest id behind it
  local ms, sequence = string.match(id, '^(%d+)-(%d+)$')
  return sequence == '18446744073709551615' and id or ms .. '-' .. string.format('%.0f', tonumber(sequence) + 1)
end
local keep, cap = tonumber(ARGV[2]), tonumber(ARGV[4])
if cap > 0 and (keep == 0 or cap < keep) then keep = cap end
local bytes = tonumber(ARGV[3])
if bytes > 0 and length > 0 then
  local used = redis.pcall('MEMORY', 'USAGE', KEYS[1], 'SAMPLES', 10)
  if type(used) == 'number' and used > bytes then
    local fit = math.floor(length * bytes / used)
    if keep == 0 or fit < keep then keep = fit end
  end
end
local function other_than(key, want)  -- what lies there instead, as an error
  local kind = redis.call('TYPE', key)
  kind = kind.ok or kind
  if kind ~= want and kind ~= 'none' then
    local word = want == 'stream' and 'WRONGTYPE ' or 'OVERWRITTEN '
    return redis.error_reply(word .. key .. ' holds a ' .. kind .. ', not a ' .. want)
  end
end
local cut, rest = '', 0
if keep > 0 then
  local wrong = other_than(KEYS[2], 'zset')
  if wrong then return wrong end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], 1, 0)  -- nothing; at maxmemory a server refuses a first write, and this one never
  local newest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if not newest[2] or tonumber(newest[2]) > added then
    redis.call('DEL', KEYS[2])
    newest = {}
  end
  if last ~= '0-0' and added - tonumber(newest[2] or 0) >= math.max(1, math.floor(keep / 100)) then
    redis.call('ZADD', KEYS[2], added, last)
  end
  local mark = redis.call('ZREVRANGEBYSCORE', KEYS[2], added - keep, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
  rest = length - keep
  if mark[1] then
    cut = after(mark[1])
    rest = added - keep - tonumber(mark[2])
  end
  if rest > 0 then  -- count on from there, a little at a time
    local rows = redis.call('XRANGE', KEYS[1], cut == '' and '-' or cut, '+', 'COUNT', math.min(rest, 200))
    if rows[1] then cut = after(rows[#rows][1]) end
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', '(' .. string.format('%.0f', added - 2 * keep))
end
local old = tonumber(ARGV[1])
if old > 0 and now > old then
  local id = string.format('%.0f', now - old)
  if cut == '' or before(cut, id) then cut = id end
end
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
local read = {}
for _, row in ipairs(groups.err and {} or groups) do
  local one = {}
  for i = 1, #row, 2 do one[row[i]] = row[i + 1] end
  read[one['name']] = one
end
local function young(key)  -- what its workers hold is not pending in it yet
  local note = redis.pcall('HGET', key, '~from:' .. KEYS[1])
  local made = type(note) == 'string' and string.match(note, ' (%d+)%.%d+$')
  return made and math.abs(tonumber(time[1]) - tonumber(made)) < tonumber(ARGV[8])
end
local floor, holder, floors = '', '', {}
for i = counting, last_counting do
  local one, id = read[ARGV[i]], '0-0'
  if one and not young(KEYS[6 + i - counting]) then
    id = after(one['last-delivered-id'])
    local oldest = one['pending'] > 0 and redis.call('XPENDING', KEYS[1], ARGV[i])[2]
    if oldest and before(oldest, id) then id = oldest end  -- a group that was set back is given again what lies before it
  end
  floors[i] = id
  if floor == '' or before(id, floor) then floor, holder = id, ARGV[i] end
end
local function trim(id)
  if length > 5000 then return redis.call('XTRIM', KEYS[1], 'MINID', '~', id, 'LIMIT', 20000) end
  return redis.call('XTRIM', KEYS[1], 'MINID', id)
end
local function cannot_tell()  -- found afterwards, what was lost would be lost untold
  local wrong = lacks({{'XADD', KEYS[4], '*', 'e', ''}}) or other_than(KEYS[4], 'stream')
  if wrong then return wrong end
  local about = redis.pcall('XINFO', 'STREAM', KEYS[4])
  for i = 1, #about, 2 do
    if about[i] == 'last-generated-id' and string.find(about[i + 1], '^18446744073709551615') then
      return redis.error_reply('ERR ' .. KEYS[4] .. ' has used up its ids')
    end
  end
end
local function four(n)  -- a number in four bytes, as in msgpack
  return string.char(math.floor(n / 16777216) % 256, math.floor(n / 65536) % 256, math.floor(n / 256) % 256, n % 256)
end
local function tell(group, since, first)
  local at = last_counting + 1 + 4 * group.place
  local left = first and 'the stream begins with ' .. first .. ' now' or 'nothing is left'
  local detail = string.format('%s %d of them, from %s on; %s', ARGV[at + 1], group.lost, since, left)
  local event = ARGV[at] .. '\\219' .. four(#detail) .. detail .. ARGV[at + 2] .. '\\206' .. four(group.lost) .. ARGV[at + 3]
  redis.call('XADD', KEYS[4], '*', 'e', event)
end
local function drop(most)
  -- Remove what is not handled, and count for each group. The server counts as it removes: whole nodes, up to where each
  -- group has read in turn, so that only what shares a node with such a place is looked at here; then what the group had
  -- in its hands, which is no more than was removed.
  local head, stops, count = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1], {}, 0
  local lagging = {}
  for i = counting, last_counting do
    local one = read[ARGV[i]]
    local upto = one and one['last-delivered-id'] or '0-0'
    local unread = redis.call('XRANGE', KEYS[1], '(' .. upto, '+', 'COUNT', 1)[1]
    stops[#stops + 1] = after(upto)
    lagging[#lagging + 1] = {
      name = ARGV[i], place = i - counting, lost = 0, first = unread and unread[1], there = one, from = stops[#stops]
    }
  end
  table.sort(stops, before)
  stops[#stops + 1] = '18446744073709551615-18446744073709551615'
  for _, stop in ipairs(stops) do
    local here = 0
    if count < most then here = redis.call('XTRIM', KEYS[1], 'MINID', '~', stop, 'LIMIT', most - count) end
    while count + here < most do
      local rows = redis.call('XRANGE', KEYS[1], '-', '(' .. stop, 'COUNT', math.min(most - count - here, 200))
      if #rows == 0 then break end
      here = here + redis.call('XTRIM', KEYS[1], 'MINID', after(rows[#rows][1]))
    end
    count = count + here
    for _, group in ipairs(lagging) do
      if before(group.from, stop) then group.lost = group.lost + here end
    end
  end
  local next = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
  local begins, told = next and next[1] or stops[#stops], {}
  for _, group in ipairs(lagging) do
    local rows = group.there and redis.call('XPENDING', KEYS[1], group.name, head, '(' .. begins, most) or {}
    group.lost = group.lost + #rows
    -- Whoever took them out of a pool, or over from the dead, would tell of them once more. Who lives and has them in hand
    -- goes on with them: what was given to nobody before him is committed all the same, what is looked up is lost, as told.
    for _, row in ipairs(rows) do redis.pcall('XACK', KEYS[1], group.name, row[1]) end
    if group.lost > 0 then
      local since = rows[1] and rows[1][1] or group.first or head
      for _, word in ipairs({group.name, group.lost, since}) do told[#told + 1] = word end
      tell(group, since, next and next[1])
    end
  end
  return count, told
end
local removed, more, told = 0, 0, {}
local held = cut ~= '' and floor ~= '' and before(floor, cut)
if cut ~= '' then removed = trim(held and floor or cut) end
if removed > 0 and rest > 200 and not held then more = 1 end  -- where no marks are, it goes in small steps
if cap > 0 and length - removed >= cap then  -- exactly what is handled, then what is not
  if floor == '' then
    removed = removed + redis.call('XTRIM', KEYS[1], 'MAXLEN', cap - 1)
  else
    removed = removed + redis.call('XTRIM', KEYS[1], 'MINID', floor)
    if ARGV[5] == '1' and length - removed >= cap then
      local wrong = cannot_tell()
      if wrong then return wrong end
      redis.call('SADD', KEYS[5], 'bus.loss')
      local over, gone = length - removed - (cap - 1), nil
      gone, told = drop(math.min(over, 5000))
      removed, more = removed + gone, over > gone and 1 or more
    end
  end
  held = floor ~= ''
end
local left = length - removed
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local full = (cap > 0 and left >= cap) and 1 or 0
local holders = {}
if held then
  holders[1] = holder
  for i = counting, last_counting do
    local oldest = first and not before(first[1], floors[i])  -- it has not handled that one either
    if full == 1 and oldest and ARGV[i] ~= holder then holders[#holders + 1] = ARGV[i] end
  end
end
local result = {left, removed, holders, full, more, first and first[1] or ''}
for _, word in ipairs(told) do result[#result + 1] = word end
return result
""",
)
