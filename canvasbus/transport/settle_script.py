"""The Lua that commits what became of deliveries: the one place that acknowledges. The rules are those of `scripts`."""

from typing import Final

from canvasbus.transport.scripts import LACKS, Script

SETTLE: Final = Script(
    "settle",
    LACKS
    + """
-- Commit the outcomes of one batch of one group: derived events, timers, state, dead letters, written attempts and
-- acknowledgements.
-- KEYS[1] the fence; KEYS[2..] what the outcomes touch
-- ARGV[1] fence value held; [2] group; [3] consumer; [4] 1: also look up every entry's owner; [5] a letter for each of
-- KEYS[2..]: x (stream), z (sorted set), h (hash), s (string); [6] number of outcomes;
-- then for each outcome: index of its stream in KEYS, entry id, verb, n, and n steps
--   verb "ack": take the steps, acknowledge   verb "try": write RETRYCOUNT = the one number that follows the steps
--   verb "bury": as "ack", also at maxmemory: a server refuses a script's first write only, and XACK it never refuses
--   verb "park": give the entry to the pool that is named behind the steps
--   verb "lose": as "bury", for an entry that is gone from its stream, whoever it is pending under
-- A step is one of, in this order:
--   "same", index of its stream, its entry id, its length, its beginning   another entry must not lie there: that is not ours
--   "once", index of a string, entry         if there is a mark it must name this entry; else nothing is done but to acknowledge
--   "if", index of a string, its token      the state must be as it was read; else nothing of this outcome is done
--   index of a stream, bytes                append
--   "later", indexes of the timers and their bodies, timer, ms from now (or ""), ms of the wall clock, body
--   "cancel", indexes of the timers and their bodies, timer
--   "set", index of a string, token and bytes (or "": delete), ms to live (or 0)
--   "part", index of a hash, field, bytes (or "": delete), ms to live (or 0: bytes keep the hash for good)
--   "unmark", index of a string, entry       delete the mark if it names this entry
-- Returns FENCED, STALE, or for each outcome 1 (committed), 0 (no longer ours), 2 (the state has changed; like 0 nothing was
-- done), 3 (the event was handled under another entry; acknowledged), 4 (there is no group to look in; nothing was done) or
-- why it was refused. An error OVERWRITTEN: something else lies where the bus keeps what is its own; with streams, which
-- belong to everybody, it is WRONGTYPE
local fence = redis.pcall('GET', KEYS[1]) or '0'
if type(fence) == 'table' then
  if string.sub(fence.err, 1, 9) ~= 'WRONGTYPE' then return redis.error_reply(fence.err) end
  return redis.error_reply('OVERWRITTEN ' .. KEYS[1] .. ' holds no string')
end
if fence ~= ARGV[1] then return redis.status_reply(fence == 'dead' and 'FENCED' or 'STALE') end
local group, consumer, look = ARGV[2], ARGV[3], ARGV[4] == '1'
local kinds = {x = 'stream', z = 'zset', h = 'hash', s = 'string'}
local needs = {  -- of a key of each kind, behind the name of the call and the key
  stream = {{'XACK', group, '0-0'}, {'XRANGE', '-', '+'}, {'XDEL', '0-0'}},
  zset = {{'ZADD', '0', ''}, {'ZREM', ''}, {'TIME'}},
  hash = {{'HSET', '', ''}, {'HDEL', ''}, {'DEL'}, {'PEXPIRE', '1'}},
  string = {{'GET'}, {'SET', ''}, {'DEL'}},
}
for i = 2, #KEYS do
  local want = kinds[string.sub(ARGV[5], i - 1, i - 1)]
  local calls = needs[want] or {}
  for _, call in ipairs(calls) do table.insert(call, 2, KEYS[i]) end
  local lacking = lacks(calls)
  if lacking then return lacking end
  needs[want] = nil  -- asked once
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  if kind ~= want and kind ~= 'none' then
    local word = want == 'stream' and 'WRONGTYPE ' or 'OVERWRITTEN '
    return redis.error_reply(word .. KEYS[i] .. ' holds a ' .. kind .. ', not a ' .. want)
  end
end
local wrote, now = false, nil
local steps = {
  same = {size = 5, run = function(key, at)
    local rows = redis.call('XRANGE', key, ARGV[at + 2], ARGV[at + 2])
    if #rows == 0 then return true end  -- trimmed
    local fields, head = table.concat(rows[1][2]), ARGV[at + 4]
    return #fields == tonumber(ARGV[at + 3]) and string.sub(fields, 1, #head) == head or 0
  end},
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
      -- What an earlier writer gave an end has none now. (PERSIST says so, too, but needs a right of its own.)
      if ARGV[at + 4] == '0' then redis.call('PEXPIRE', key, '100000000000000', 'XX') end
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
    if ours then ours = #redis.call('XRANGE', stream, id, id) == 0 end  -- a server that lost its last seconds has it again
  elseif look or verb == 'try' or verb == 'park' then  -- XCLAIM takes from anybody
    -- pcall: a lost group must not end the batch half-way
    local rows = redis.pcall('XPENDING', stream, group, id, id, 1, consumer)
    if rows.err then ours = 4 else ours = #rows == 1 end
  end
  if verb == 'bury' or verb == 'lose' then redis.pcall('XACK', stream, group, '0-0') end
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
  if verb == 'try' then
    if ours == true and #redis.call('XRANGE', stream, id, id) > 0 then  -- of a trimmed one XCLAIM would drop the record
      redis.pcall('XCLAIM', stream, group, consumer, 0, id, 'RETRYCOUNT', ARGV[at], 'JUSTID')
    end
    at = at + 1
  elseif verb == 'park' then
    if ours == true and #redis.call('XRANGE', stream, id, id) > 0 then  -- else it is lost, which an audit will tell
      local moved = redis.pcall('XCLAIM', stream, group, ARGV[at], 0, id, 'JUSTID')
      if moved.err then ours = moved.err end
    end
    at = at + 1
  elseif ours == true or ours == 3 then
    acks[stream] = acks[stream] or {'XACK', stream, group}
    table.insert(acks[stream], id)
  end
  if ours == true then result[i] = 1 elseif ours then result[i] = ours else result[i] = 0 end
end
for _, call in pairs(acks) do
  redis.call(unpack(call))
end
return result
""",
)
