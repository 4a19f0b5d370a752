"""The Lua that moves pending entries between consumers: from the dead, out of pools, back to them. The rules are those of
`scripts`."""

from typing import Final

from canvasbus.transport.scripts import Script

RAISE: Final = Script(
    "raise",
    """
-- Raise a fence at maxmemory, where INCR is refused: a server refuses a script's first write only, and this it never refuses.
-- KEYS[1] the fence; ARGV[1] how many times; [2] seconds to keep it
-- Returns its number
redis.call('EXPIRE', KEYS[1], ARGV[2])
local number
for _ = 1, tonumber(ARGV[1]) do
  number = redis.pcall('INCR', KEYS[1])
  if type(number) == 'table' then return redis.error_reply(number.err) end
end
redis.call('EXPIRE', KEYS[1], ARGV[2])
return number
""",
)


REAP: Final = Script(
    "reap",
    """
-- Move entries of a dead consumer to the pool of suspects, and forget the consumer when it owns nothing more. Entries
-- that are gone from their stream stay where they are, for the caller to tell and acknowledge: XCLAIM would drop them.
-- KEYS[1] fence of the dead one; KEYS[2] heartbeats; KEYS[3..] streams of the group; the last one what its workers accept
-- ARGV[1] group; [2] dead consumer; [3] pool; [4] how many entries at most; [5] seconds to keep the mark
-- Returns the number of entries moved (-1: the consumer is gone altogether), then for each entry that is gone the index
-- of its stream in KEYS and its id
redis.call('SET', KEYS[1], 'dead', 'EX', ARGV[5])
local group, dead, pool, left = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local moved, owns, result = 0, false, {0}
for i = 3, #KEYS - 1 do
  local rows = redis.pcall('XPENDING', KEYS[i], group, '-', '+', left + 1, dead)
  if not rows.err then
    local ids = {}
    for j, row in ipairs(rows) do
      if j > left then
        owns = true
      elseif #redis.call('XRANGE', KEYS[i], row[1], row[1]) == 0 then
        owns = true
        result[#result + 1] = i
        result[#result + 1] = row[1]
      else
        ids[#ids + 1] = row[1]
      end
    end
    if #ids > 0 then
      local call = {'XCLAIM', KEYS[i], group, pool, 0}
      for _, id in ipairs(ids) do call[#call + 1] = id end
      call[#call + 1] = 'JUSTID'
      redis.call(unpack(call))
      moved = moved + #ids
      left = left - #ids
    end
    if #rows <= #ids then
      redis.pcall('XGROUP', 'DELCONSUMER', KEYS[i], group, dead)
    end
  end
end
if moved == 0 and not owns then
  redis.call('HDEL', KEYS[2], dead)
  redis.pcall('HDEL', KEYS[#KEYS], dead)  -- pcall: should it be no hash, a dead one must go all the same
  return {-1}
end
result[1] = moved
return result
""",
)


TAKE: Final = Script(
    "take",
    """
-- Take entries out of a pool (a consumer name that starts with "~" and that nobody is) into our own hands.
-- KEYS[1] our fence; KEYS[2..] streams
-- ARGV[1] fence value held; [2] group; [3] consumer; [4] pool; [5] how many at most; [6] milliseconds for which each
-- must have lain there; [7] 1: forget the pool where it is empty now
-- then, if some streams are to share a lower limit: for each stream the number of its limit, and those limits
-- Returns FENCED, STALE, or a flat list: index of the stream in KEYS, entry id, deliveries counted, fields (empty: trimmed)
local fence = redis.call('GET', KEYS[1]) or '0'
if fence ~= ARGV[1] then return redis.status_reply(fence == 'dead' and 'FENCED' or 'STALE') end
local group, consumer, pool, left, idle = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local result, room = {}, {}
for i = 7 + #KEYS, #ARGV do room[#room + 1] = tonumber(ARGV[i]) end
for i = 2, #KEYS do
  if left <= 0 then break end
  local lane = tonumber(ARGV[6 + i]) or 1
  local most = math.min(left, room[lane] or left)
  local rows = most > 0 and redis.pcall('XPENDING', KEYS[i], group, '-', '+', most, pool) or {}
  if not rows.err then
    for _, row in ipairs(rows) do
      if row[3] >= idle then
        local id = row[1]
        local body = redis.call('XRANGE', KEYS[i], id, id)
        if #body > 0 then
          redis.call('XCLAIM', KEYS[i], group, consumer, 0, id, 'JUSTID')
        end
        result[#result + 1] = i
        result[#result + 1] = id
        result[#result + 1] = row[4]
        result[#result + 1] = #body > 0 and body[1][2] or {}
        left = left - 1
        if room[lane] then room[lane] = room[lane] - 1 end
      end
    end
    if ARGV[7] == '1' and #redis.call('XPENDING', KEYS[i], group, '-', '+', 1, pool) == 0 then
      redis.pcall('XGROUP', 'DELCONSUMER', KEYS[i], group, pool)
    end
  end
end
return result
""",
)


RELEASE: Final = Script(
    "release",
    """
-- Hand entries back to a pool, then leave the group where we own nothing more. An entry that is gone from its stream
-- is left pending: whoever reaps us tells.
-- KEYS[1] our fence; KEYS[2] heartbeats; KEYS[3..] streams; the last one what the group's workers accept
-- ARGV[1] fence value held; [2] group; [3] consumer; [4] pool; [5] 1: also leave; [6] seconds to keep the mark of the fence
-- then (index of the stream in KEYS, entry id, delivery count to write or "")...
-- Returns FENCED, STALE, AWAY (there is no group to hand some of them back to), or the number of entries handed back
local fence = redis.call('GET', KEYS[1]) or '0'
if fence ~= ARGV[1] then return redis.status_reply(fence == 'dead' and 'FENCED' or 'STALE') end
local group, consumer, pool = ARGV[2], ARGV[3], ARGV[4]
local moved, away = 0, false
for at = 7, #ARGV, 3 do
  local stream, id, tries = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local rows = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
  if rows.err then
    away = away or string.find(tostring(rows.err), 'NOGROUP', 1, true)
  elseif #rows == 1 and #redis.call('XRANGE', stream, id, id) > 0 then
    if tries == '' then
      redis.call('XCLAIM', stream, group, pool, 0, id, 'JUSTID')
    else
      redis.call('XCLAIM', stream, group, pool, 0, id, 'RETRYCOUNT', tries, 'JUSTID')
    end
    moved = moved + 1
  end
end
if away then return redis.status_reply('AWAY') end
if ARGV[5] == '1' then
  local owns = false
  for i = 3, #KEYS - 1 do
    local rows = redis.pcall('XPENDING', KEYS[i], group, '-', '+', 1, consumer)
    if not rows.err then
      if #rows == 0 then
        redis.pcall('XGROUP', 'DELCONSUMER', KEYS[i], group, consumer)
      else
        owns = true
      end
    end
  end
  if not owns then
    redis.call('HDEL', KEYS[2], consumer)
    redis.pcall('HDEL', KEYS[#KEYS], consumer)
    if fence ~= '0' then  -- a lost copy of a settle may still come: deleting the key would let it in
      redis.call('SET', KEYS[1], 'dead', 'EX', ARGV[6])
    end
  end
end
return moved
""",
)
