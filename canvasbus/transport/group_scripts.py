"""The Lua around a group as such: it may get lost, and be forgotten. The rules are those of `scripts`."""

from typing import Final

from canvasbus.transport.scripts import Script

_LATER = """
local function later(a, b)  -- as text, by length first: a number of Lua cannot hold every part of an id
  local a1, a2 = string.match(a, '^(%d+)-(%d+)$')
  local b1, b2 = string.match(b, '^(%d+)-(%d+)$')
  if not (a1 and b1) then return a1 ~= nil end  -- what is no id, a stranger wrote: it comes before all
  if a1 ~= b1 then a2, b2 = a1, b1 end
  if #a2 ~= #b2 then return #a2 > #b2 end
  return a2 > b2
end
"""

REPORT: Final = Script(
    "report",
    """
-- Note how far a worker has read, for whoever must make the group anew, and that the group exists.
-- KEYS[1] cursors of the group; KEYS[2] hash of declarations
-- ARGV[1] group; [2] its declaration; then stream, entry id, ...
-- Returns how often the group was made anew, and 1 when its declaration was gone
"""
    + _LATER
    + """
for i = 3, #ARGV, 2 do
  local known = redis.call('HGET', KEYS[1], ARGV[i])
  if not known or later(ARGV[i + 1], known) then redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1]) end
end
local gone = 0
if redis.call('HEXISTS', KEYS[2], ARGV[1]) == 0 then gone = redis.call('HSET', KEYS[2], ARGV[1], ARGV[2]) end
local made = redis.call('HGET', KEYS[1], '~made') or ''
return {string.find(made, '^%d+$') and #made < 16 and tonumber(made) or 0, gone}
""",
)

RENEW: Final = Script(
    "renew",
    """
-- Make a group anew that is gone from a stream: after the last entry that any worker is known to have been given, or
-- from the start if the stream is another one. Whoever does it tells, in the same step.
-- KEYS[1] cursors of the group; KEYS[2] the stream; KEYS[3] the list that names it; KEYS[4] topics; KEYS[5] bus.loss
-- ARGV[1] group; [2] type; [3] the last entry that the caller was given; [4] 1: only if it is another stream;
-- [5] [6] envelopes of bus.loss: the group was gone, the stream is another
-- Returns '' (it is there), 'later' (see [4]), or after which entry it was made; then 1 if the stream is another one
"""
    + _LATER
    + """
local cursors, stream, group = KEYS[1], KEYS[2], ARGV[1]
local groups = redis.pcall('XINFO', 'GROUPS', stream)
if not groups.err then
  for _, row in ipairs(groups) do
    for i = 1, #row, 2 do
      if row[i] == 'name' and row[i + 1] == group then return {'', 0} end
    end
  end
end
local start, other = redis.call('HGET', cursors, stream) or '0-0', true
if later(ARGV[3], start) then start = ARGV[3] end
local info = redis.pcall('XINFO', 'STREAM', stream)
if not info.err then
  local facts = {}
  for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
  local first = facts['first-entry']
  -- Nothing was ever removed from it, and where we stood there is nothing: it is not the stream on which we stood.
  local whole = facts['length'] == facts['entries-added'] and (not first or later(first[1], start))
  other = start ~= '0-0' and (whole or later(start, facts['last-generated-id']))
end
if other then start = '0-0' elseif ARGV[4] == '1' then return {'later', 0} end
if start == '0-0' then
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM', 'ENTRIESREAD', '0')
else
  redis.call('XGROUP', 'CREATE', stream, group, start)
end
local now = redis.call('TIME')
redis.call('HSET', cursors, stream, start, '~from:' .. stream, start .. ' ' .. now[1] .. '.' .. now[2])
redis.call('HDEL', cursors, '~gone:' .. stream)
local made = redis.pcall('HINCRBY', cursors, '~made', 1)
if type(made) == 'table' and made.err then redis.call('HSET', cursors, '~made', 1) end  -- it was no number
redis.call('SADD', KEYS[3], ARGV[2])
redis.call('SADD', KEYS[4], 'bus.loss')
redis.call('XADD', KEYS[5], '*', 'e', other and ARGV[6] or ARGV[5])
return {start, other and 1 or 0}
""",
)

MISSED: Final = Script(
    "missed",
    """
-- Tell of entries that were removed before the group was given them: once, whoever sees it first.
-- KEYS[1] cursors of the group; KEYS[2] stream of bus.loss; KEYS[3] topics
-- ARGV[1] stream; [2] what was noted when the caller looked ("": nothing); [3] what to note; [4] envelope of bus.loss or ""
-- Returns 1; 0: somebody else was first
local field = '~gone:' .. ARGV[1]
if (redis.call('HGET', KEYS[1], field) or '') ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], field, ARGV[3])
if ARGV[4] ~= '' then
  redis.call('SADD', KEYS[3], 'bus.loss')
  redis.call('XADD', KEYS[2], '*', 'e', ARGV[4])
end
return 1
""",
)

HOLD: Final = Script(
    "hold",
    """
-- Let entries that we hold be pending in our name, in a group that was made anew and knows nothing of them.
-- KEYS[1] our fence; KEYS[2] the stream
-- ARGV[1] fence value held; [2] group; [3] consumer; [4..] entry ids
-- Returns FENCED, STALE, or how many it were
local fence = redis.call('GET', KEYS[1]) or '0'
if fence ~= ARGV[1] then return redis.status_reply(fence == 'dead' and 'FENCED' or 'STALE') end
local call = {'XCLAIM', KEYS[2], ARGV[2], ARGV[3], 0}
for i = 4, #ARGV do
  local rows = redis.pcall('XPENDING', KEYS[2], ARGV[2], ARGV[i], ARGV[i], 1)
  if not rows.err and #rows == 0 then call[#call + 1] = ARGV[i] end
end
local found = #call - 5
if found > 0 then
  call[#call + 1] = 'FORCE'
  call[#call + 1] = 'JUSTID'
  redis.pcall(unpack(call))
end
return found
""",
)

FORGET: Final = Script(
    "forget",
    """
-- Remove a consumer group from some streams, or in the end what else it has, unless it has come to life again.
-- KEYS[1] its heartbeats; KEYS[2] hash of declarations; KEYS[3..] streams, or keys of the group's own
-- ARGV[1] 0: the keys are streams; else the end: delete them, the heartbeats and the declaration; [2] group;
-- [3] -1, or how many words follow: the heartbeats that the caller saw (name, count, ...)
-- Returns 1; 0: a heart has beaten since, and nothing was done. One that is gone has not: somebody else forgets the group, too
local group, words = ARGV[2], tonumber(ARGV[3])
if words >= 0 then
  local seen, flat = {}, redis.call('HGETALL', KEYS[1])
  for i = 4, 3 + words, 2 do seen[ARGV[i]] = ARGV[i + 1] end
  for i = 1, #flat, 2 do
    if seen[flat[i]] ~= flat[i + 1] then return 0 end
  end
end
for i = 3, #KEYS do
  if ARGV[1] == '0' then
    redis.pcall('XGROUP', 'DESTROY', KEYS[i], group)
  else
    redis.call('DEL', KEYS[i])
  end
end
if ARGV[1] ~= '0' then
  redis.call('DEL', KEYS[1])
  redis.call('HDEL', KEYS[2], group)
end
return 1
""",
)
