"""What the Lua of the bus has in common, and what belongs to publishers and people; the rest by what it is about:
`settle_script`, `owner_scripts`, `timer_scripts`, `trim_script`, `group_scripts`.

Rules for every script: keys of one partition only, all declared; check ownership first; look at types before the first
write and acknowledge last, because Lua does not roll back; time from the server; flat arrays in the reply; loops
bounded by what the caller sends. A script is called by its hash and loaded on NOSCRIPT, over the same link.

The fence (`Keys.fence`): one key per incarnation, absent = "0", else a number, or `dead`. Whoever declares an
incarnation dead writes `dead` in the same script that takes its first entry; an incarnation that lost the reply of a
script raises the number before it tries again, so that the first copy, should it still be on its way, changes nothing.
A raising may itself come late, after the one that was sent again: what bears the number before that is STALE, not FENCED,
and its sender raises the number once more.
"""

import hashlib
from collections.abc import Sequence
from typing import Final

from canvasbus.transport.resp import Argument, Operation, Packet, Reply, ReplyError, code, pack

FENCE_SECONDS: Final = 7 * 24 * 3600
"""How long a fence that was used, and the mark of a dead incarnation, are kept; no packet is late by a week."""


class Script:
    """One Lua script."""

    __slots__ = ("_head", "name", "sha", "source")

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source
        self.sha = hashlib.sha1(source.encode()).hexdigest()

    def packet(self, keys: Sequence[bytes], args: Sequence[Argument]) -> Packet:
        """The call by hash."""
        return Packet(pack("EVALSHA", self.sha, len(keys), *keys, *args), 1)

    def source_packet(self, keys: Sequence[bytes], args: Sequence[Argument]) -> Packet:
        """The call by source, which loads it too."""
        return Packet(pack("EVAL", self.source, len(keys), *keys, *args), 1)

    def call(self, keys: Sequence[bytes], args: Sequence[Argument]) -> Operation[Reply]:
        """Call the script, load it when the server does not have it, return its reply (an error reply as a value)."""
        reply = (yield self.packet(keys, args))[0]
        if isinstance(reply, ReplyError) and code(reply) == "NOSCRIPT":
            reply = (yield self.source_packet(keys, args))[0]
        return reply

    def __repr__(self) -> str:
        return f"<Script {self.name} {self.sha[:8]}>"


LACKS: Final = """
-- What to return where the user lacks a right for one of these calls, nil: none. Asked before the first write: found in the
-- middle, what was written before would stay, and be written again. (The server tells it to Redis 7.0 and newer.)
local function lacks(calls)
  for _, call in ipairs(redis.acl_check_cmd and calls or {}) do
    if not redis.acl_check_cmd(unpack(call)) then
      return redis.error_reply("NOPERM the user may not run '" .. string.lower(call[1]) .. "'")
    end
  end
end
"""

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
    LACKS
    + """
-- Store events each of which bears a mark, unless its mark is there already. Doing it again does nothing again.
-- KEYS[1] set of topics; KEYS[2] the namespace's facts; KEYS[3] the inbox; then n streams, then a mark for each event
-- ARGV[1] ms for which a mark is kept; [2] partitions that must be on record (0: any number); [3] n; then the type of each
-- stream, to be listed ('': not); then for each event the index of its stream in KEYS, and its bytes
-- Returns UNDECLARED (the number on record is another, or none), or for each event: + and its entry id; = and that of the
-- one that is there; - and why it was refused. An entry id of the inbox begins with ~
local marks = 4 + tonumber(ARGV[3])
local calls = {{'TYPE', KEYS[4]}, {'GET', KEYS[marks]}, {'SET', KEYS[marks], '', 'PX', 1}, {'SADD', KEYS[1], 'type'}}
calls[#calls + 1] = {'XADD', KEYS[4], '*', 'e', ''}
local lacking = lacks(calls)
if lacking then return lacking end
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

REDRIVE: Final = Script(
    "redrive",
    LACKS
    + """
-- Put dead letters of one group back to work: each goes to its group's retry stream and out of the dead letters in one
-- step, so that doing it twice does it once. Nothing else is removed.
-- KEYS[1] the dead letters; KEYS[2] set of the types that have retry streams; KEYS[3..] retry streams
-- ARGV[1] group; then for each letter: its id, index of its stream in KEYS, type, how many words follow, fields and values
-- Returns how many were moved; the others had gone
local lacking = lacks({{'XRANGE', KEYS[1], '-', '+'}, {'XDEL', KEYS[1], '0-0'}})
if lacking then return lacking end
local fresh = {}
for i = 3, #KEYS do
  local kind = redis.call('TYPE', KEYS[i])
  kind = kind.ok or kind
  if kind ~= 'stream' and kind ~= 'none' then
    return redis.error_reply('WRONGTYPE ' .. KEYS[i] .. ' holds a ' .. kind .. ', not a stream')
  end
  fresh[KEYS[i]] = kind == 'none'
end
local moved, at = 0, 2
while at <= #ARGV do
  local id, stream, kind, words = ARGV[at], KEYS[tonumber(ARGV[at + 1])], ARGV[at + 2], tonumber(ARGV[at + 3])
  if #redis.call('XRANGE', KEYS[1], id, id) > 0 then
    local call = {'XADD', stream, '*'}
    for i = 1, words do call[#call + 1] = ARGV[at + 3 + i] end
    redis.call('SADD', KEYS[2], kind)  -- first: refused afterwards, it would leave the letter where nobody looks
    if fresh[stream] then
      -- With its group, so that it counts as lag while no worker runs. pcall: workers make it, too.
      redis.pcall('XGROUP', 'CREATE', stream, ARGV[1], '0', 'MKSTREAM', 'ENTRIESREAD', '0')
      fresh[stream] = false
    end
    redis.call(unpack(call))
    redis.call('XDEL', KEYS[1], id)
    moved = moved + 1
  end
  at = at + 4 + words
end
return moved
""",
)
