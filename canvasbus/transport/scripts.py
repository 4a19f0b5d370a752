"""The Lua of the bus; what is about a group that may get lost lies in `group_scripts`.

Rules for every script: keys of one partition only, all declared; check ownership first; look at types before the first
write and acknowledge last, because Lua does not roll back; time from the server; flat arrays in the reply; loops
bounded by what the caller sends. A script is called by its hash and loaded on NOSCRIPT, over the same link.

The fence (`Keys.fence`): one key per incarnation, absent = "0", else a number, or `dead`. Whoever declares an
incarnation dead writes `dead` in the same script that takes its first entry; an incarnation that lost the reply of a
script raises the number before it tries again, so that the first copy, should it still be on its way, changes nothing.
"""

import hashlib
from typing import Final

from canvasbus.transport.resp import Operation, Packet, Reply, ReplyError, code, pack

FENCE_SECONDS: Final = 7 * 24 * 3600
"""How long a fence that was used, and the mark of a dead incarnation, are kept; no packet is late by a week."""


class Script:
    """One Lua script."""

    __slots__ = ("_head", "name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()

    def packet(self, keys: list[bytes], args: list[bytes | str | int]) -> Packet:
        """The call by hash."""
        return Packet(pack("EVALSHA", self.sha, len(keys), *keys, *args), 1)

    def source_packet(self, keys: list[bytes], args: list[bytes | str | int]) -> Packet:
        """The call by source, which loads it too."""
        return Packet(pack("EVAL", self.source, len(keys), *keys, *args), 1)

    def call(self, keys: list[bytes], args: list[bytes | str | int]) -> Operation[Reply]:
        """Call the script, load it when the server does not have it, return its reply (an error reply as a value)."""
        reply = (yield self.packet(keys, args))[0]
        if isinstance(reply, ReplyError) and code(reply) == "NOSCRIPT":
            reply = (yield self.source_packet(keys, args))[0]
        return reply

    def __repr__(self) -> str:
        return f"<Script {self.name} {self.sha[:8]}>"


DENIED: Final = Script(
    "denied",
    """
-- Which commands the user of this connection may not run. None of them is run.
-- ARGV[1] the commands as JSON, each a list of words
-- Returns the numbers, from 1, of those that are denied, or that the server does not know
local result = {}
for i, words in ipairs(cjson.decode(ARGV[1])) do
  local known, allowed = pcall(redis.acl_check_cmd, unpack(words))
  if not (known and allowed) then result[#result + 1] = i end
end
return result
""",
)

ONCE: Final = Script(
    "once",
    """
-- Store events each of which bears a mark, unless its mark is there already. Doing it again does nothing again.
-- KEYS[1] set of topics; KEYS[2] the namespace's facts; KEYS[3] the inbox; then n streams, then a mark for each event
-- ARGV[1] ms for which a mark is kept; [2] partitions that must be on record (0: any number); [3] n; then the type of each
-- stream, to be listed ('': not); then for each event the index of its stream in KEYS, and its bytes
-- Returns UNDECLARED (the number on record is another, or none), or for each event: + and its entry id; = and that of the
-- one that is there; - and why it was refused. An entry id of the inbox begins with ~
local marks = 4 + tonumber(ARGV[3])
if redis.acl_check_cmd then  -- found in the middle, an event would stay without its mark
  local calls = {{'TYPE', KEYS[4]}, {'GET', KEYS[marks]}, {'SET', KEYS[marks], '', 'PX', 1}, {'SADD', KEYS[1], 'type'}}
  calls[#calls + 1] = {'XADD', KEYS[4], '*', 'e', ''}
  for _, call in ipairs(calls) do
    if not redis.acl_check_cmd(unpack(call)) then
      return redis.error_reply("NOPERM the user may not run '" .. string.lower(call[1]) .. "'")
    end
  end
end
if ARGV[2] ~= '0' and redis.call('HGET', KEYS[2], 'partitions') ~= ARGV[2] then
  return redis.status_reply('UNDECLARED')
end
local wrong = {}
for i = 4, marks - 1 do
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  if kind ~= 'stream' and kind ~= 'none' then wrong[i] = '-WRONGTYPE ' .. KEYS[i] .. ' holds a ' .. kind end
end
local kind = redis.call('TYPE', KEYS[1])
kind = kind.ok or kind
if kind ~= 'set' and kind ~= 'none' then return redis.error_reply('WRONGTYPE ' .. KEYS[1] .. ' holds a ' .. kind) end
local result, listed, wrote = {}, {}, false
for i = marks, #KEYS do
  local at = 2 * i - marks
  local to = tonumber(ARGV[at])
  local known, answer = redis.pcall('GET', KEYS[i]), nil
  if type(known) == 'table' then
    answer = '-' .. tostring(known.err)
  elseif known then
    answer = '=' .. known
  elseif wrong[to] then
    answer = wrong[to]
  else
    if not listed[to] and ARGV[to] ~= '' then redis.call('SADD', KEYS[1], ARGV[to]) end
    listed[to] = true
    local made = redis.pcall('XADD', KEYS[to], '*', 'e', ARGV[at + 1])
    if type(made) == 'table' and made.err then
      -- A server that takes nothing now says so before the first write; what remains is a stream without free ids.
      if not wrote and string.sub(made.err, 1, 4) ~= 'ERR ' then return redis.error_reply(made.err) end
      answer = '-' .. tostring(made.err)
    else
      wrote = true
      if KEYS[to] == KEYS[3] then made = '~' .. made end
      redis.call('SET', KEYS[i], made, 'PX', ARGV[1])
      answer = '+' .. made
    end
  end
  result[#result + 1] = answer
end
return result
""",
)

SETTLE: Final = Script(
    "settle",
    """
-- Commit the outcomes of one batch of one group: derived events, timers, state, dead letters, written attempts and
-- acknowledgements.
-- KEYS[1] the fence; KEYS[2..] what the outcomes touch
-- ARGV[1] fence value held; [2] group; [3] consumer; [4] 1: also look up every entry's owner; [5] a letter for each of
-- KEYS[2..]: x (stream), z (sorted set), h (hash), s (string); [6] number of outcomes;
-- then for each outcome: index of its stream in KEYS, entry id, verb, n, and n steps
--   verb "ack": take the steps, acknowledge   verb "try": write RETRYCOUNT = the one number that follows (n = 0)
--   verb "bury": as "ack", also at maxmemory: a server refuses a script's first write only, and XACK it never refuses
--   verb "park": give the entry to the pool that is named next (n = 0)
--   verb "lose": as "bury", for an entry that is gone from its stream, whoever it is pending under
-- A step is one of, in this order:
--   "once", index of a string, entry         if there is a mark it must name this entry; else nothing is done but to acknowledge
--   "if", index of a string, its token      the state must be as it was read; else nothing of this outcome is done
--   index of a stream, bytes                append
--   "later", indexes of the timers and their bodies, timer, ms from now (or ""), ms of the wall clock, body
--   "cancel", indexes of the timers and their bodies, timer
--   "set", index of a string, token and bytes (or "": delete), ms to live (or 0)
--   "part", index of a hash, field, bytes (or "": delete), ms to live (or 0)
--   "unmark", index of a string, entry       delete the mark if it names this entry
-- Returns FENCED, or for each outcome 1 (committed), 0 (no longer ours), 2 (the state has changed; like 0 nothing was
-- done), 3 (the event was handled under another entry; acknowledged) or why it was refused. An error OVERWRITTEN: something
-- else lies where the bus keeps what is its own; with streams, which belong to everybody, it is WRONGTYPE
local fence = redis.pcall('GET', KEYS[1]) or '0'
if type(fence) == 'table' then return redis.error_reply('OVERWRITTEN ' .. KEYS[1] .. ' holds no string') end
if fence ~= ARGV[1] then return redis.status_reply('FENCED') end
local kinds = {x = 'stream', z = 'zset', h = 'hash', s = 'string'}
for i = 2, #KEYS do
  local want = kinds[string.sub(ARGV[5], i - 1, i - 1)]
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  if kind ~= want and kind ~= 'none' then
    local word = want == 'stream' and 'WRONGTYPE ' or 'OVERWRITTEN '
    return redis.error_reply(word .. KEYS[i] .. ' holds a ' .. kind .. ', not a ' .. want)
  end
end
local group, consumer, look = ARGV[2], ARGV[3], ARGV[4] == '1'
if redis.acl_check_cmd and #KEYS > 1 and not redis.acl_check_cmd('XACK', KEYS[2], group, '0-0') then
  return redis.error_reply("NOPERM the user may not run 'xack'")  -- found at the end, what was added would stay
end
local wrote, now = false, nil
local steps = {
  once = {size = 3, run = function(key, at)
    local known = redis.call('GET', key)
    return not known or known == ARGV[at + 2] or 3
  end},
  unmark = {size = 3, run = function(key, at)
    if redis.call('GET', key) == ARGV[at + 2] then redis.call('DEL', key) end
    return true
  end},
  ['if'] = {size = 3, run = function(key, at)
    return string.sub(redis.call('GET', key) or '', 1, 16) == ARGV[at + 2] or 2
  end},
  later = {size = 7, run = function(key, at)
    local due = ARGV[at + 5]
    if ARGV[at + 4] ~= '' then
      now = now or redis.call('TIME')
      due = string.format('%.0f', tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000) + ARGV[at + 4])
    end
    local body = ARGV[at + 6]
    local newline = string.find(body, '\\n', 1, true) or 1
    body = string.sub(body, 1, newline - 1) .. ' ' .. due .. string.sub(body, newline)
    redis.call('ZADD', key, due, ARGV[at + 3])
    redis.call('HSET', KEYS[tonumber(ARGV[at + 2])], ARGV[at + 3], body)
    wrote = true
    return true
  end},
  cancel = {size = 4, run = function(key, at)
    redis.call('ZREM', key, ARGV[at + 3])
    redis.call('HDEL', KEYS[tonumber(ARGV[at + 2])], ARGV[at + 3])
    return true
  end},
  set = {size = 4, run = function(key, at)
    if ARGV[at + 2] == '' then
      redis.call('DEL', key)
    elseif ARGV[at + 3] == '0' then
      redis.call('SET', key, ARGV[at + 2])
    else
      redis.call('SET', key, ARGV[at + 2], 'PX', ARGV[at + 3])
    end
    wrote = true
    return true
  end},
  part = {size = 5, run = function(key, at)
    if ARGV[at + 3] == '' then
      redis.call('HDEL', key, ARGV[at + 2])
    else
      redis.call('HSET', key, ARGV[at + 2], ARGV[at + 3])
    end
    if ARGV[at + 4] ~= '0' then redis.call('PEXPIRE', key, ARGV[at + 4]) end
    wrote = true
    return true
  end},
}
local at, result, acks = 7, {}, {}
for i = 1, tonumber(ARGV[6]) do
  local stream, id, verb, n = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2], tonumber(ARGV[at + 3])
  at = at + 4
  local ours = true
  if verb == 'lose' then
    local rows = redis.pcall('XPENDING', stream, group, id, id, 1)
    ours = not rows.err and #rows == 1
  elseif look or verb == 'try' or verb == 'park' then  -- XCLAIM takes from anybody
    -- pcall: a lost group must not end the batch half-way
    local rows = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
    ours = not rows.err and #rows == 1
  end
  if verb == 'try' then
    if ours and #redis.call('XRANGE', stream, id, id) > 0 then  -- of a trimmed one XCLAIM would drop the record
      redis.pcall('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', ARGV[at], 'JUSTID')
    end
    at = at + 1
  elseif verb == 'park' then
    if ours and #redis.call('XRANGE', stream, id, id) > 0 then  -- else it is lost, which an audit will tell
      local moved = redis.pcall('XCLAIM', stream, group, ARGV[at], 0, id, 'JUSTID')
      if moved.err then ours = moved.err end
    end
    at = at + 1
  else
    if verb ~= 'ack' then redis.pcall('XACK', stream, group, '0-0') end
    local added = {}
    for j = 1, n do
      local step = steps[ARGV[at]]
      if step then
        if ours == true then ours = step.run(KEYS[tonumber(ARGV[at + 1])], at) end
        at = at + step.size - 2
      elseif ours == true then
        local to = KEYS[tonumber(ARGV[at])]
        local made = redis.pcall('XADD', to, '*', 'e', ARGV[at + 1])
        if type(made) == 'table' and made.err then  -- rare: the stream has used up its ids
          if not wrote then return redis.error_reply(made.err) end
          for _, one in ipairs(added) do redis.call('XDEL', one[1], one[2]) end  -- nobody has seen them yet
          ours = made.err
        else
          added[#added + 1], wrote = {to, made}, true
        end
      end
      at = at + 2
    end
    if ours == true or ours == 3 then
      acks[stream] = acks[stream] or {'XACK', stream, group}
      table.insert(acks[stream], id)
    end
  end
  if ours == true then result[i] = 1 elseif ours then result[i] = ours else result[i] = 0 end
end
for _, call in pairs(acks) do
  redis.call(unpack(call))
end
return result
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
-- Returns FENCED, or a flat list: index of the stream in KEYS, entry id, deliveries counted, fields (empty: trimmed)
local fence = redis.call('GET', KEYS[1]) or '0'
if fence ~= ARGV[1] then return redis.status_reply('FENCED') end
local group, consumer, pool, left, idle = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local result = {}
for i = 2, #KEYS do
  if left <= 0 then break end
  local rows = redis.pcall('XPENDING', KEYS[i], group, '-', '+', left, pool)
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
-- Returns FENCED, or the number of entries handed back
local fence = redis.call('GET', KEYS[1]) or '0'
if fence ~= ARGV[1] then return redis.status_reply('FENCED') end
local group, consumer, pool = ARGV[2], ARGV[3], ARGV[4]
local moved = 0
for at = 7, #ARGV, 3 do
  local stream, id, tries = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local rows = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
  if not rows.err and #rows == 1 and #redis.call('XRANGE', stream, id, id) > 0 then
    if tries == '' then
      redis.call('XCLAIM', stream, group, pool, 0, id, 'JUSTID')
    else
      redis.call('XCLAIM', stream, group, pool, 0, id, 'RETRYCOUNT', tries, 'JUSTID')
    end
    moved = moved + 1
  end
end
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

DUE: Final = Script(
    "due",
    """
-- Put what was published with a delay among the timers, and say which timers are due.
-- KEYS[1] timers (sorted set: timer by due time in ms); KEYS[2] their bodies (hash: timer to type, blank, due time, newline,
-- envelope);
-- KEYS[3] the inbox (stream: due time in ms, or + and ms after the entry's own, newline, body)
-- ARGV[1] how many at most, of each; [2] for how many ms what was read stays: publishers look there what became of theirs;
-- [3] group of the inbox: how far it is read must go and come with it, or what was published already would be again
-- Returns ms until the next timer that is not due (-1: none), how many bodies there are more than timers, then the types
-- and names of those that are due, in turn
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local at = string.format('%.0f', now)
local groups, read = redis.pcall('XINFO', 'GROUPS', KEYS[3]), nil
for _, row in ipairs(groups.err and {} or groups) do
  local one = {}
  for i = 1, #row, 2 do one[row[i]] = row[i + 1] end
  if one['name'] == ARGV[3] then read = one['last-delivered-id'] end
end
local rows = redis.call('XRANGE', KEYS[3], read and '(' .. read or '-', '+', 'COUNT', ARGV[1])
for _, row in ipairs(rows) do
  local value = row[2][2]
  local newline = string.find(value, '\\n', 1, true) or 1
  local due = string.sub(value, 1, newline - 1)
  local after, number = string.match(due, '^(%+?)(%d+)$')  -- what is neither, a stranger wrote: passed by
  if number and #number < 16 then  -- min: ids never go back, so those of a clock that was ahead say that it still is
    due = tonumber(number) + (after == '+' and math.min(tonumber(string.match(row[1], '^%d+')), now) or 0)
    local body = string.sub(value, newline + 1)
    local at = string.find(body, '\\n', 1, true) or 1
    due = string.format('%.0f', due)
    redis.call('ZADD', KEYS[1], due, '~' .. row[1])
    redis.call('HSET', KEYS[2], '~' .. row[1], string.sub(body, 1, at - 1) .. ' ' .. due .. string.sub(body, at))
  end
end
if #rows > 0 then
  if not read then redis.call('XGROUP', 'CREATE', KEYS[3], ARGV[3], '0') end
  redis.call('XREADGROUP', 'GROUP', ARGV[3], ARGV[3], 'COUNT', #rows, 'NOACK', 'STREAMS', KEYS[3], '>')
  redis.call('XTRIM', KEYS[3], 'MINID', string.format('%.0f', now - ARGV[2]))
end
local coming = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. at, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local more = redis.call('HLEN', KEYS[2]) - redis.call('ZCARD', KEYS[1])
local result = {coming[2] and math.ceil(tonumber(coming[2]) - now) or -1, more}
for _, timer in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, ARGV[1])) do
  local body = redis.call('HGET', KEYS[2], timer) or ''
  local head = string.sub(body, 1, (string.find(body, '\\n', 1, true) or 1) - 1)
  result[#result + 1] = string.match(head, '^(.*) %d+$') or head
  result[#result + 1] = timer
end
return result
""",
)

FIRE: Final = Script(
    "fire",
    """
-- Publish timers that are due. Each is gone in the same step, so that no two of those who run this publish it twice.
-- KEYS[1] timers; KEYS[2] their bodies; KEYS[3] set of topics; KEYS[4..] streams
-- ARGV: index of a stream in KEYS, its type, timer; in turn
-- Returns how many were published, how many have lost their bodies and are gone, then those whose stream refuses them, or
-- whose body names no type: they are tried again in a minute
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local result, wrote, refuses = {0, 0}, false, {}
for i = 4, #KEYS do
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  refuses[KEYS[i]] = kind ~= 'stream' and kind ~= 'none'
end
for at = 1, #ARGV, 3 do
  local stream, kind, timer = KEYS[tonumber(ARGV[at])], ARGV[at + 1], ARGV[at + 2]
  local due = redis.call('ZSCORE', KEYS[1], timer)
  if due and tonumber(due) <= now then  -- else it was cancelled, put off or published meanwhile
    local body = redis.call('HGET', KEYS[2], timer)
    local newline = body and string.find(body, '\\n', 1, true) or 1
    local head = string.sub(body or '', 1, newline - 1)
    if not body then
      redis.call('ZREM', KEYS[1], timer)
      result[2] = result[2] + 1
    elseif (string.match(head, '^(.*) %d+$') or head) == kind then  -- else it was set anew
      local made = {err = 'WRONGTYPE'}
      if kind ~= '' and not refuses[stream] then
        -- First: refused afterwards, it would leave the timer where it is, to be published again and again.
        local listed = redis.pcall('SADD', KEYS[3], kind)
        if type(listed) == 'table' and listed.err then return redis.error_reply(listed.err) end
        made = redis.pcall('XADD', stream, '*', 'e', string.sub(body, newline + 1))
      end
      if type(made) == 'table' and made.err then
        if not wrote and string.sub(made.err, 1, 3) == 'OOM' then return redis.error_reply(made.err) end
        redis.call('ZADD', KEYS[1], string.format('%.0f', now + 60000), timer)
        result[#result + 1] = timer
      else
        redis.call('ZREM', KEYS[1], timer)
        redis.call('HDEL', KEYS[2], timer)
        result[1] = result[1] + 1
        wrote = true
      end
    end
  end
end
return result
""",
)

MATCH: Final = Script(
    "match",
    """
-- Timers and their bodies are not equally many: somebody has deleted some of either. Look at one page of those that are
-- too many. What still has its body is put back, to when that says it is due; what has lost the other half is removed.
-- KEYS[1] timers; KEYS[2] their bodies
-- ARGV[1] 1: look at the bodies, 0: at the timers; [2] where the page begins (0: the first); [3] how many, about
-- Returns where the next page begins (0: this was the last), how many were put back, how many are gone
local bodies = ARGV[1] == '1'
local page = redis.call(bodies and 'HSCAN' or 'ZSCAN', KEYS[bodies and 2 or 1], ARGV[2], 'COUNT', ARGV[3])
local back, gone = 0, 0
for i = 1, #page[2], 2 do
  local timer, body = page[2][i], page[2][i + 1]
  if bodies and not redis.call('ZSCORE', KEYS[1], timer) then
    local due = string.match(string.sub(body, 1, (string.find(body, '\\n', 1, true) or 1) - 1), ' (%d+)$')
    if due and #due < 16 then
      redis.call('ZADD', KEYS[1], due, timer)
      back = back + 1
    else
      redis.call('HDEL', KEYS[2], timer)
      gone = gone + 1
    end
  elseif not bodies and redis.call('HEXISTS', KEYS[2], timer) == 0 then
    redis.call('ZREM', KEYS[1], timer)
    gone = gone + 1
  end
end
return {page[1], back, gone}
""",
)

FORGET: Final = Script(
    "forget",
    """
-- Remove a consumer group from some streams, or in the end what else it has, unless it has come to life again.
-- KEYS[1] its heartbeats; KEYS[2] hash of declarations; KEYS[3..] streams, or keys of the group's own
-- ARGV[1] 0: the keys are streams; else the end: delete them, the heartbeats and the declaration; [2] group;
-- [3] -1, or how many words follow: the heartbeats that the caller saw, sorted (name, count, ...)
-- Returns 1; 0: the heartbeats are others by now, and nothing was done
local group, words = ARGV[2], tonumber(ARGV[3])
if words >= 0 then
  local flat = redis.call('HGETALL', KEYS[1])
  if #flat ~= words then return 0 end
  local now = {}
  for i = 1, #flat, 2 do now[flat[i]] = flat[i + 1] end
  for i = 4, 3 + words, 2 do
    if now[ARGV[i]] ~= ARGV[i + 1] then return 0 end
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

TRIM: Final = Script(
    "trim",
    """
-- Remove the oldest entries of a stream as far as its targets ask for it and no group that counts still needs them.
-- KEYS[1] the stream; KEYS[2] marks: now and then an entry id, by how many entries had been added when it was the last;
-- KEYS[3] hash of declarations
-- ARGV[1] age in ms (0: any); [2] entries to keep at most (0: any); [3] bytes to keep at most (0: any); [4] cap: how many
-- there may be, handled or not (0: any); [5] 1: above the cap remove what is not handled too; [6] how many groups were
-- declared when it was found out which count: one that came since might have to read what would go; [7..] their names;
-- behind them those that count
-- Returns entries left, entries removed, the group that keeps older entries than the targets ask for ("": none does), 1
-- when the cap is reached, 1 when there is more to remove at once, the first entry left; then for each group that had not
-- handled all that was removed: its name, how many of these, the first of them. Entries removed is -1, and nothing was
-- done, when other groups are declared by now
local info = redis.pcall('XINFO', 'STREAM', KEYS[1])
if info.err then return {0, 0, '', 0, 0, ''} end
local facts = {}
for i = 1, #info, 2 do facts[info[i]] = info[i + 1] end
local counting = 7 + tonumber(ARGV[6])
if redis.call('HLEN', KEYS[3]) ~= counting - 7 then return {0, -1, '', 0, 0, ''} end
for i = 7, counting - 1 do
  if redis.call('HEXISTS', KEYS[3], ARGV[i]) == 0 then return {0, -1, '', 0, 0, ''} end
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
local cut = ''
if keep > 0 then
  local newest = redis.call('ZREVRANGE', KEYS[2], 0, 0, 'WITHSCORES')
  if not newest[2] or tonumber(newest[2]) > added then
    redis.call('DEL', KEYS[2])
    newest = {}
  end
  if last ~= '0-0' and added - tonumber(newest[2] or 0) >= math.max(1, math.floor(keep / 100)) then
    redis.call('ZADD', KEYS[2], added, last)
  end
  local mark = redis.call('ZREVRANGEBYSCORE', KEYS[2], added - keep, '-inf', 'WITHSCORES', 'LIMIT', 0, 1)
  local rest = length - keep
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
local floor, holder = '', ''
for i = counting, #ARGV do
  local one, id = read[ARGV[i]], '0-0'
  if one then
    id = after(one['last-delivered-id'])
    if one['pending'] > 0 then id = redis.call('XPENDING', KEYS[1], ARGV[i])[2] end
  end
  if floor == '' or before(id, floor) then floor, holder = id, ARGV[i] end
end
local function trim(id)
  if length > 5000 then return redis.call('XTRIM', KEYS[1], 'MINID', '~', id, 'LIMIT', 20000) end
  return redis.call('XTRIM', KEYS[1], 'MINID', id)
end
local function drop(most)
  -- Remove what is not handled, and count for each group. The server counts as it removes: whole nodes, up to where each
  -- group has read in turn, so that only what shares a node with such a place is looked at here; then what the group had
  -- in its hands, which is no more than was removed.
  local head, stops, count = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1][1], {}, 0
  local lagging = {}
  for i = counting, #ARGV do
    local one = read[ARGV[i]]
    local upto = one and one['last-delivered-id'] or '0-0'
    local unread = redis.call('XRANGE', KEYS[1], '(' .. upto, '+', 'COUNT', 1)[1]
    stops[#stops + 1] = after(upto)
    lagging[#lagging + 1] = {name = ARGV[i], lost = 0, first = unread and unread[1], there = one, from = stops[#stops]}
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
    local lost = group.lost + #rows
    if lost > 0 then
      for _, word in ipairs({group.name, lost, rows[1] and rows[1][1] or group.first}) do told[#told + 1] = word end
    end
  end
  return count, told
end
local removed, more, told = 0, 0, {}
local held = cut ~= '' and floor ~= '' and before(floor, cut)
if cut ~= '' then removed = trim(held and floor or cut) end
if cap > 0 and length - removed >= cap then  -- exactly what is handled, then what is not
  if floor == '' then
    removed = removed + redis.call('XTRIM', KEYS[1], 'MAXLEN', cap - 1)
  else
    removed = removed + redis.call('XTRIM', KEYS[1], 'MINID', floor)
    if ARGV[5] == '1' and length - removed >= cap then
      local over, gone = length - removed - (cap - 1), nil
      gone, told = drop(math.min(over, 5000))
      removed, more = removed + gone, over > gone and 1 or 0
    end
  end
  held = floor ~= ''
end
local left = length - removed
local first = redis.call('XRANGE', KEYS[1], '-', '+', 'COUNT', 1)[1]
local full = (cap > 0 and left >= cap) and 1 or 0
local result = {left, removed, held and holder or '', full, more, first and first[1] or ''}
for _, word in ipairs(told) do result[#result + 1] = word end
return result
""",
)

REDRIVE: Final = Script(
    "redrive",
    """
-- Put dead letters of one group back to work: each goes to its group's retry stream and out of the dead letters in one
-- step, so that doing it twice does it once. Nothing else is removed.
-- KEYS[1] the dead letters; KEYS[2] set of the types that have retry streams; KEYS[3..] retry streams
-- ARGV[1] group; then for each letter: its id, index of its stream in KEYS, type, how many words follow, fields and values
-- Returns how many were moved; the others had gone
for i = 3, #KEYS do
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  if kind ~= 'stream' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' holds a ' .. kind .. ', not a stream')
  end
end
local moved, at = 0, 2
while at <= #ARGV do
  local id, stream, kind, words = ARGV[at], KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2], tonumber(ARGV[at + 3])
  if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
    local call = {'XADD', stream, '*'}
    for i = 1, words do call[#call + 1] = ARGV[at + 3 + i] end
    redis.call('SADD', KEYS[2], kind)  -- first: refused afterwards, it would leave the letter where nobody looks
    redis.call(unpack(call))
    redis.call('XDEL', KEYS[1], id)
    moved = moved + 1
  end
  at = at + 4 + words
end
return moved
""",
)
