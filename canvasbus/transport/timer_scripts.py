"""The Lua of events that come later: into the timers, out of them, and what becomes of those that somebody deletes half of.
The rules are those of `scripts`."""

from typing import Final

from canvasbus.transport.scripts import LACKS, Script

DUE: Final = Script(
    "due",
    """
-- Put what was published with a delay among the timers, and say which timers are due.
-- KEYS[1] timers (sorted set: timer by due time in ms); KEYS[2] their bodies (hash: timer to type, blank, due time, newline,
-- envelope);
-- KEYS[3] the inbox (stream: due time in ms, or + and ms after the entry's own, newline, body)
-- ARGV[1] how many at most, of each; [2] for how many ms what was read stays: publishers look there what became of theirs;
-- [3] group of the inbox: how far it is read must go and come with it, or what was published already would be again
-- Returns ms until the next timer that is not due (-1: none; 0: there may be more in the inbox), how many bodies there are
-- more than timers, then the types and names of those that are due, in turn
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local at = string.format('%.0f', now)
local groups, read = redis.pcall('XINFO', 'GROUPS', KEYS[3]), nil
for _, row in ipairs(groups.err and {} or groups) do
  local one = {}
  for i = 1, #row, 2 do one[row[i]] = row[i + 1] end
  if one['name'] == ARGV[3] then read = one['last-delivered-id'] end
end
local most, large = tonumber(ARGV[1]), 4194304  -- and so many bytes, each time: the server does nothing else meanwhile
local rows, bytes, from = {}, 0, read and '(' .. read or '-'
while from and #rows < most and bytes < large do
  local page = redis.call('XRANGE', KEYS[3], from, '+', 'COUNT', math.min(most - #rows, 4))
  for _, row in ipairs(page) do
    rows[#rows + 1], bytes = row, bytes + #row[2][2]
  end
  from = page[1] and '(' .. page[#page][1]
end
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
  -- Never past what was read: the rest may have waited for somebody who does this for longer than that.
  local upto = math.min(now - ARGV[2], tonumber(string.match(rows[#rows][1], '^%d+')))
  redis.call('XTRIM', KEYS[3], 'MINID', string.format('%.0f', upto))
end
local coming = redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. at, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
local more = redis.call('HLEN', KEYS[2]) - redis.call('ZCARD', KEYS[1])
local result = {coming[2] and math.ceil(tonumber(coming[2]) - now) or -1, more}
if #rows == most or bytes >= large then result[1] = 0 end
bytes = 0
for _, timer in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', at, 'LIMIT', 0, ARGV[1])) do
  if bytes >= large then break end
  local body = redis.call('HGET', KEYS[2], timer) or ''
  local head = string.sub(body, 1, (string.find(body, '\\n', 1, true) or 1) - 1)
  result[#result + 1] = string.match(head, '^(.*) %d+$') or head
  result[#result + 1] = timer
  bytes = bytes + #body
end
return result
""",
)


FIRE: Final = Script(
    "fire",
    LACKS
    + """
-- Publish timers that are due. Each is gone in the same step, so that no two of those who run this publish it twice.
-- KEYS[1] timers; KEYS[2] their bodies; KEYS[3] set of topics; KEYS[4..] streams
-- ARGV: index of a stream in KEYS, its type, timer; in turn
-- Returns how many were published, how many have lost their bodies and are gone, then those whose stream refuses them, or
-- whose body names no type: they are tried again in a minute
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
local lacking = lacks({{'ZREM', KEYS[1], ''}, {'ZADD', KEYS[1], '0', ''}, {'HDEL', KEYS[2], ''}})
if lacking then return lacking end
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
local page = bodies and redis.call('HSCAN', KEYS[2], ARGV[2], 'COUNT', ARGV[3])
  or redis.call('ZSCAN', KEYS[1], ARGV[2], 'COUNT', ARGV[3])
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
