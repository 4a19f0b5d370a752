"""Every Redis key of the bus is named here.

All keys of one partition share the hash tag `{namespace:partition}`, so that one script may touch all of them, on one
server and in a Redis Cluster alike.
"""

import re
from binascii import crc32

from canvasbus.checks import check_number
from canvasbus.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}")

MAX_PARTITIONS = 4096
"""More than this is a mistake: every process has a connection for each."""

FREE_POOL = "~free"
"""Owner, in a group's pending list, of entries that were handed back; anybody takes them."""
SUSPECT_POOL = "~suspect"
"""Owner of entries whose worker died; they run in quarantine."""

LATER_INBOX = "~later"
"""Stands for a type: its stream takes what is published with a delay, until that is put among the timers."""
INBOX_GROUP = "~timers"
"""The consumer group of that stream that says how far it has been put there; nobody joins it."""

TYPES = {
    **dict.fromkeys(("stream", "inbox", "dead", "retry"), "stream"),
    **dict.fromkeys(("meta", "groups", "retention", "group-seen", "beats", "accepts", "cursors"), "hash"),
    **dict.fromkeys(("parts", "timer-bodies"), "hash"),
    **dict.fromkeys(("fence", "reaper", "paused", "state", "full", "maintainer"), "string"),
    **dict.fromkeys(("once", "done"), "string"),
    **dict.fromkeys(("topics", "retries"), "set"),
    **dict.fromkeys(("timers", "marks"), "zset"),
}
"""What follows the hash tag in a key → what the key holds, in the words of TYPE."""

_VERSION_POOL = re.compile(r"~(v|vs):(.+):([0-9]{1,9})")


def version_pool(event_type: str, version: int, *, suspects: bool = False) -> str:
    """Owner of entries that wait for a worker that knows this version of the type; of those whose worker died, if
    `suspects`."""
    return f"~{'vs' if suspects else 'v'}:{event_type}:{version}"


def version_in(pool: str) -> int | None:
    """The version that entries in this pool wait for; None: it is no such pool."""
    found = _VERSION_POOL.fullmatch(pool)
    return int(found[3]) if found else None


def holds_suspects(pool: str) -> bool:
    """True for a pool of entries whose worker died."""
    found = _VERSION_POOL.fullmatch(pool)
    return pool == SUSPECT_POOL or (found is not None and found[1] == "vs")


def check_name(kind: str, name: str) -> str:
    """Return `name`, or raise ConfigError: braces would move keys to another slot, blanks and globs break patterns."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ConfigError(f"{kind} {name!r}: use 1 to 100 letters, digits, dots, dashes and underscores")
    return name


def check_partition_count(partitions: object) -> None:
    """Raise ConfigError for a number of partitions that no namespace has."""
    check_number("partitions", partitions, whole=True)
    if not 1 <= partitions <= MAX_PARTITIONS:  # type: ignore[operator]
        raise ConfigError(f"partitions={partitions}: a namespace has 1 to {MAX_PARTITIONS}")


def partition_of(key: str | None, partitions: int) -> int:
    """The partition of an event with this key. Events without a key lie in partition 0."""
    return 0 if key is None or partitions == 1 else crc32(key.encode()) % partitions


class Keys:
    """The keys of one partition of one namespace, as bytes ready for the wire."""

    __slots__ = ("_prefix", "groups", "meta", "namespace", "partition", "topics")

    def __init__(self, namespace: str = "canvasbus", partition: int = 0) -> None:
        self.namespace = check_name("namespace", namespace)
        self.partition = partition
        self._prefix = f"{{{namespace}:{partition}}}:"
        self.topics = self._key("topics")
        """Set of the type names that have a stream here."""
        self.groups = self._key("groups")
        """Hash: declared group → JSON of the types and globs that it reads, and whether it is one process's own."""
        self.meta = self._key("meta")
        """Hash of facts that all processes must agree on; `partitions` in partition 0."""

    def _key(self, *parts: str) -> bytes:
        return (self._prefix + ":".join(parts)).encode()

    def stream(self, event_type: str) -> bytes:
        """The stream of one event type."""
        return self._key("stream", event_type) if event_type != LATER_INBOX else self._key("inbox")

    def dead(self, group: str) -> bytes:
        """The dead-letter stream of a group."""
        return self._key("dead", group)

    def beats(self, group: str) -> bytes:
        """Hash: consumer incarnation → its count of heartbeats."""
        return self._key("beats", group)

    def accepts(self, group: str) -> bytes:
        """Hash: consumer incarnation → JSON of the types and versions that it takes (see `consume.accepting`)."""
        return self._key("accepts", group)

    def fence(self, incarnation: str) -> bytes:
        """The fencing token of one producer or consumer incarnation: absent (0), a number, or `dead`."""
        return self._key("fence", incarnation)

    def cursors(self, group: str) -> bytes:
        """Hash of what must outlive the loss of a group: stream → the last entry given to the group, `~made` → how often
        it was made anew, `~from:` and a stream → after which entry and when, `~gone:` and a stream → entries that had gone
        unread by the server's count."""
        return self._key("cursors", group)

    def reaper(self, group: str) -> bytes:
        """The lease of the one worker that may declare others of the group dead."""
        return self._key("reaper", group)

    def paused(self, group: str) -> bytes:
        """JSON of who paused the group; absent: it is not paused. In partition 0."""
        return self._key("paused", group)

    def retry(self, group: str, event_type: str) -> bytes:
        """The stream of what was redriven out of a group's dead letters: that group alone reads it."""
        return self._key("retry", group, event_type)

    def retries(self, group: str) -> bytes:
        """Set of the types that have such a stream."""
        return self._key("retries", group)

    @property
    def timers(self) -> bytes:
        """Sorted set: timer → when it is due, in ms of the server's clock."""
        return self._key("timers")

    @property
    def timer_bodies(self) -> bytes:
        """Hash: timer → event type, blank, when it is due as in `timers`, newline, envelope."""
        return self._key("timer-bodies")

    @property
    def maintainer(self) -> bytes:
        """The lease of the one bus that fires timers, trims, and removes what killed instances left."""
        return self._key("maintainer")

    @property
    def retention(self) -> bytes:
        """Hash: type or glob → JSON of what is kept of it."""
        return self._key("retention")

    @property
    def full(self) -> bytes:
        """JSON of the types whose streams take no more for the moment, and why; while somebody maintains the namespace."""
        return self._key("full")

    @property
    def group_seen(self) -> bytes:
        """Hash: declared group → its heartbeats, all in all, and when they were last seen to grow; `~watched` → when somebody
        last looked."""
        return self._key("group-seen")

    def marks(self, event_type: str) -> bytes:
        """Sorted set of the trimming of a stream: entry ids, by how many entries had been added by then."""
        return self._key("marks", event_type)

    def state(self, group: str, name: str) -> bytes:
        """A group's state of that name: 16 bytes that change with each commit, then the value in msgpack."""
        return self._key("state", group, name)

    def parts(self, group: str, name: str) -> bytes:
        """Hash: part id → value in msgpack."""
        return self._key("parts", group, name)

    def once(self, hex_id: str) -> bytes:
        """The mark of an event that is to be stored once (see `marks`), by its id in hex without dashes: the entry id."""
        return self._key("once", hex_id)

    def done(self, group: str, hex_id: str) -> bytes:
        """The mark of an event that a group is to handle once, and has: the id of the entry under which it did, behind ~
        that of a redriven one."""
        return self._key("done", group, hex_id)

    @property
    def stream_pattern(self) -> bytes:
        """A SCAN pattern for all event streams, also those that a foreign writer made."""
        return self._key("stream", "*")

    def type_of(self, stream: bytes) -> str:
        """The event type of a stream key."""
        return stream[len(self._prefix) + len("stream:") :].decode()

    def __repr__(self) -> str:
        return f"<Keys {self._prefix}>"
