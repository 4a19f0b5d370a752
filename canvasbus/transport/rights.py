"""What each role may do on the server: the least ACL, as data.

    producer     `Producer` and `canvasbus publish`: adds events; reads where streams end, and on from there where a reply
                 was lost
    worker       `canvasbus-worker` and every EventBus, which also fires timers: reads, settles, takes over from the dead
    operator     the commands of `canvasbus` that look and mend

A right is a command in a form that the bus sends, with the kinds of keys that it touches in place of the keys, and what
it is for. From this table come the lines that `canvasbus doctor --acl` prints, the check of a worker that joins, and
what doctor finds missing. tests/transport/test_rights.py holds the code to it: a command that some module sends and no
role may send fails there.

Commands that show or change what is not the bus's own are in no role: CONFIG GET shows the server's passwords. Where
a user lacks what is optional the bus goes on without.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from canvasbus.errors import ConfigError
from canvasbus.transport.resp import Operation, check
from canvasbus.transport.scripts import DENIED
from canvasbus.wire.keys import LATER_INBOX, Keys

ROLES = ("producer", "worker", "operator")

_CONTAINERS = frozenset(("ACL", "CLIENT", "CONFIG", "MEMORY", "SCRIPT", "XGROUP", "XINFO"))
"""Commands whose second word is a command of its own to the ACL."""


@dataclass(frozen=True, slots=True)
class Right:
    """One command, and what is lost without it."""

    form: str
    """As it is sent; words in lower case stand for keys (see `words`) and arguments."""
    use: str
    """What it is for, as the end of "needed to"."""
    optional: bool = False

    @property
    def name(self) -> str:
        """As an ACL and its denials name it: xadd, xgroup|create."""
        return acl_name(self.form.split())


def acl_name(words: list[str]) -> str:
    """The name of a command to the ACL."""
    return "|".join(words[: 2 if words[0].upper() in _CONTAINERS else 1]).lower()


_CONNECT = (
    Right("PING", "connect"),
    Right("SELECT 0", "use another database than 0", optional=True),
    Right("ROLE", "leave a replica behind redis+sentinel:// before anything is written", optional=True),
    Right("CLIENT SETNAME name", "show what it is in CLIENT LIST", optional=True),
)
_PRODUCER = (
    *_CONNECT,
    Right("HSETNX meta partitions 1", "agree on the number of partitions"),
    Right("HGET meta partitions", "agree on the number of partitions"),
    Right("SADD topics type", "list the topics"),
    Right("SCARD topics", "publish with a delay"),
    Right("WATCH fence", "publish"),
    Right("MULTI", "publish"),
    Right("XADD stream * e value", "publish"),
    Right("XADD inbox * e value", "publish with a delay"),
    Right("EXEC", "publish"),
    Right("DISCARD", "publish many, where something comes between two batches"),
    Right("WAIT 1 0", "publish with durability='replicated'", optional=True),
    Right("GET full", "see which streams are full"),
    Right("XREVRANGE stream + -", "publish"),
    Right("INCR fence", "make sure of events whose reply was lost"),
    Right("EXPIRE fence 1", "make sure of events whose reply was lost"),
    Right("XRANGE stream - +", "make sure of events whose reply was lost"),
    Right("XINFO STREAM stream", "make sure of events whose reply was lost"),
    Right("EVALSHA sha 1 once", "publish with dedupe", optional=True),
    Right("EVAL script 1 once", "publish with dedupe", optional=True),
    Right("GET once", "publish with dedupe", optional=True),
    Right("SET once value", "publish with dedupe", optional=True),
    Right("TYPE stream", "publish with dedupe", optional=True),
)
_TRIM = (
    Right("EVALSHA sha 1 stream", "trim"),
    Right("EVAL script 1 stream", "trim"),
    Right("HLEN groups", "trim"),
    Right("HEXISTS groups group", "trim"),
    Right("XLEN stream", "trim"),
    Right("XTRIM stream MINID 0", "trim"),
    Right("MEMORY USAGE stream", "trim by bytes", optional=True),
    Right("DEL marks", "trim"),
    Right("ZADD marks 1 0-0", "trim"),
    Right("ZREVRANGE marks 0 0", "trim"),
    Right("ZREVRANGEBYSCORE marks 1 0", "trim"),
    Right("ZREMRANGEBYSCORE marks 0 1", "trim"),
    Right("SET full value", "tell publishers what is full"),
)
_WORKER = (
    *_PRODUCER,
    Right("CLIENT ID", "end a blocked read early", optional=True),
    Right("CLIENT UNBLOCK 0", "end a blocked read early", optional=True),
    Right("INFO server", "notice a failover or a restart at once", optional=True),
    Right("HEXISTS groups group", "join its group"),
    Right("HSET groups group about", "join its group"),
    Right("XGROUP CREATE stream group 0", "join its group"),
    Right("SMEMBERS topics", "find topics"),
    Right("SCAN 0", "find topics of foreign writers"),
    Right("XREADGROUP GROUP group consumer STREAMS stream >", "read"),
    Right("XACK stream group 0-0", "acknowledge"),
    Right("EVALSHA sha 1 stream", "settle, take over and hand back"),
    Right("EVAL script 1 stream", "settle, take over and hand back"),
    Right("TYPE stream", "settle"),
    Right("XADD dead * e value", "write dead letters"),
    Right("XDEL stream 0-0", "undo half a settle"),
    Right("GET fence", "settle only what is its own"),
    Right("SET fence mark", "take over from the dead"),
    Right("XPENDING stream group", "take over from the dead"),
    Right("XCLAIM stream group consumer 0 0-0 JUSTID", "take over from the dead"),
    Right("XINFO GROUPS stream", "keep its place"),
    Right("XINFO CONSUMERS stream group", "take over from the dead"),
    Right("XGROUP DELCONSUMER stream group consumer", "tidy up after the dead"),
    Right("HINCRBY beats consumer 1", "show that it is alive"),
    Right("HSET accepts consumer about", "say which versions it takes"),
    Right("HGETALL beats", "see who is alive"),
    Right("HDEL beats consumer", "tidy up after the dead"),
    Right("HLEN beats", "go on where it was when its group is lost"),
    Right("HMGET cursors field", "go on where it was when its group is lost"),
    Right("HSET cursors stream 0-0", "go on where it was when its group is lost"),
    Right("HINCRBY cursors field 1", "go on where it was when its group is lost"),
    Right("HDEL cursors field", "go on where it was when its group is lost"),
    Right("SET reaper name", "agree on who takes over"),
    Right("PEXPIRE reaper 1", "agree on who takes over"),
    Right("GET paused", "see whether its group is paused"),
    Right("PTTL paused", "see whether its group is paused"),
    Right("TIME", "fire timers"),
    Right("HSETNX groups group about", "join its group"),
    Right("XGROUP DESTROY stream group", "tidy up after groups of one process"),
    Right("ZADD timers 1 timer", "keep events for later"),
    Right("HSET bodies timer value", "keep events for later"),
    Right("ZREM timers timer", "fire timers"),
    Right("ZSCORE timers timer", "fire timers"),
    Right("ZRANGEBYSCORE timers 0 1", "fire timers"),
    Right("HGET bodies timer", "fire timers"),
    Right("HLEN bodies", "fire timers"),
    Right("ZCARD timers", "fire timers"),
    Right("HSCAN bodies 0", "put back timers that somebody has deleted"),
    Right("ZSCAN timers 0", "put back timers that somebody has deleted"),
    Right("HEXISTS bodies timer", "put back timers that somebody has deleted"),
    Right("XTRIM inbox MINID 0", "fire timers"),
    Right("GET state", "keep state"),
    Right("SET state value", "keep state"),
    Right("DEL state", "keep state"),
    Right("GET done", "handle events once"),
    Right("SET done entry", "handle events once"),
    Right("DEL done", "handle events once"),
    Right("MGET done", "not to call handlers for nothing", optional=True),
    *_TRIM,
)
_OPERATOR = (
    *_PRODUCER,
    Right("SCAN 0", "find topics of foreign writers"),
    Right("SMEMBERS topics", "look at topics"),
    Right("HKEYS groups", "look at groups"),
    Right("XINFO GROUPS stream", "look at groups"),
    Right("XINFO CONSUMERS stream group", "look at groups"),
    Right("XPENDING stream group", "look at groups"),
    Right("HGETALL beats", "see who is alive"),
    Right("HGETALL accepts", "see who takes which versions"),
    Right("TIME", "tell ages"),
    Right("TYPE dead", "redrive dead letters"),
    Right("XADD retry * e value", "redrive dead letters"),
    Right("XGROUP CREATE retry group 0", "count what was redriven while no worker runs", optional=True),
    Right("XDEL dead 0-0", "redrive or purge dead letters"),
    Right("GET paused", "look at groups"),
    Right("PTTL paused", "look at groups"),
    Right("SET paused about", "pause a group"),
    Right("DEL paused", "resume a group"),
    Right("XGROUP SETID stream group 0", "reset a group"),
    Right("XGROUP DESTROY stream group", "forget a group"),
    Right("HDEL cursors field", "reset a group"),
    Right("DEL dead", "forget a group"),
    Right("HDEL groups group", "forget a group"),
    Right("HSET retention type policy", "set the retention"),
    Right("HDEL retention type", "set the retention"),
    *_TRIM,
    Right("XACK stream group 0-0", "trim at a cap, and tell once what is lost"),
    Right("XLEN dead", "count dead letters"),
    Right("XREVRANGE dead + -", "read dead letters"),
    Right("XREAD STREAMS stream $", "tail"),
    Right("GET state", "look at incidents and silences"),
    Right("ZRANGE timers 0 0", "look at timers"),
    Right("ZCARD timers", "look at timers"),
    Right("HMGET bodies timer", "look at timers"),
    Right("HLEN bodies", "see timers that have lost something", optional=True),
    Right("ZRANGEBYSCORE timers 0 1", "see timers that are overdue", optional=True),
    Right("INFO", "look at the server", optional=True),
    Right("ACL WHOAMI", "say who it is", optional=True),
)
RIGHTS = {"producer": _PRODUCER, "worker": _WORKER, "operator": _OPERATOR}

_PATTERNS = {
    "producer": (
        "stream:*",
        "inbox",
        "fence:*",
        "once:*",
        "topics",
        "meta",
        "full",
    ),  # not: dead letters, state, heartbeats
    "worker": ("*",),
    "operator": ("*",),
}


def acl(role: str, namespace: str) -> str:
    """The ACL SETUSER line of a role, without a password: a user that has one keeps it, a new one cannot log in yet."""
    if role not in RIGHTS:
        raise ConfigError(f"there is no role {role!r}; there are {', '.join(ROLES)}")
    Keys(namespace)  # refuses what would be a pattern
    keys = [f"~{{{namespace}:*}}:{pattern}" for pattern in _PATTERNS[role]]
    names = dict.fromkeys(f"+{right.name}" for right in RIGHTS[role])
    return " ".join(("ACL SETUSER", user(role, namespace), "on resetkeys", *keys, "resetchannels -@all", *names))


def user(role: str, namespace: str) -> str:
    """The user's name in that line."""
    return f"{namespace}-{role}"


def words(right: Right, keys: Keys, *, group: str = "group", event_type: str = "type") -> list[bytes]:
    """The command as it would be sent."""
    known = {
        "meta": keys.meta,
        "topics": keys.topics,
        "groups": keys.groups,
        "stream": keys.stream(event_type),
        "inbox": keys.stream(LATER_INBOX),
        "dead": keys.dead(group),
        "retry": keys.retry(group, event_type),
        "beats": keys.beats(group),
        "accepts": keys.accepts(group),
        "fence": keys.fence("consumer"),
        "reaper": keys.reaper(group),
        "cursors": keys.cursors(group),
        "full": keys.full,
        "retention": keys.retention,
        "paused": keys.paused(group),
        "marks": keys.marks(event_type),
        "timers": keys.timers,
        "bodies": keys.timer_bodies,
        "state": keys.state(group, "name"),
        "once": keys.once("id"),
        "done": keys.done(group, "id"),
    }
    return [known.get(word, word.encode()) for word in right.form.split()]


def denied(
    rights: Iterable[Right], keys: Keys, *, group: str = "group", event_type: str = "type"
) -> Operation[list[Right]]:
    """Those of the rights that the user of this connection lacks. None of them is run, and the ACL log stays empty.

    Raises Refused where the user may not run scripts, which only producers can do without.
    """
    asked = list(rights)
    forms = [[word.decode() for word in words(right, keys, group=group, event_type=event_type)] for right in asked]
    reply = check((yield from DENIED.call([], [json.dumps(forms)])), "ask for the rights of this user")
    return [asked[index - 1] for index in reply]
