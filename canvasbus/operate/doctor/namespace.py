"""What the server tells of one namespace, as plain facts. Names come from strangers too, and stay bytes here."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from canvasbus.ids import id_order
from canvasbus.transport.resp import Reply, ReplyError, code
from canvasbus.wire.deadletter import DeadLetterRecord
from canvasbus.wire.retention import Full

T = TypeVar("T")

REDRIVEN = " (redriven)"
"""Follows the type in the name of the stream of what was redriven to a group."""


@dataclass(slots=True)
class Owner:
    """Who has entries of a group in hand: a consumer, or a pool (~…)."""

    entries: int
    seconds: float | None = None
    """Since its oldest entry was given to it; None: not looked at."""


@dataclass(slots=True)
class StreamFacts:
    """One event type in one partition."""

    topic: str
    key: bytes
    partition: int
    entries: int = 0
    told: bool = False
    """What follows is known."""
    first: bytes | None = None
    """The id of its oldest entry; None: there is none."""
    last: bytes | None = None
    deleted: bytes = b"0-0"
    """The newest id that was deleted from its middle."""


@dataclass(slots=True)
class Reading:
    """One group on one stream."""

    stream: StreamFacts
    cursor: bytes
    """The last entry that the group was given."""
    owners: dict[bytes, Owner] = field(default_factory=dict)
    idle: dict[bytes, int] = field(default_factory=dict)
    """Consumer → milliseconds since it last talked to the server."""
    unread_seconds: float | None = None
    """Age of the oldest entry that the group has not been given; None: it has been given all."""
    oldest: list[bytes] = field(default_factory=list)
    """The first pending entries."""
    gone: int = 0
    """Those of them that are no longer in the stream."""
    looked: bool = False
    """False: there are too many groups and topics to look at each; what stands above is not known."""

    @property
    def topic(self) -> str:
        return self.stream.topic


@dataclass(slots=True)
class GroupFacts:
    """One group, over all topics and partitions."""

    name: bytes
    declared: bool = False
    types: set[str] = field(default_factory=set)
    """What its workers say that they read: types, and globs of them."""
    globs: set[str] = field(default_factory=set)
    instance: bool = False
    paused: bool = False
    readings: list[Reading] = field(default_factory=list)
    everyone: set[bytes] = field(default_factory=set)
    lifeless: set[bytes] | None = None
    """Consumers that show no life; None: not known."""
    letters: int | None = 0
    """Dead letters; None: not known."""
    newest: DeadLetterRecord | None = None
    """The newest of them that can be read."""
    newest_seconds: float | None = None
    """Age of the newest."""


@dataclass(slots=True)
class NamespaceFacts:
    """What the server told of a namespace."""

    namespace: str
    recorded: int | None = None
    """Partitions on record; None: nobody has used the namespace here."""
    recorded_error: str = ""
    """Why what is on record cannot be used."""
    partitions: int = 1
    """How many were looked at."""
    neighbours: list[str] = field(default_factory=list)
    """Other namespaces on the server; looked for only where this one is unused."""
    keys: Counter[str] = field(default_factory=Counter)
    """Kind → how many keys."""
    wrong: list[tuple[bytes, str, str]] = field(default_factory=list)
    """(key, what it holds, what it should hold)."""
    foreign: int = 0
    """Keys with the namespace's hash tag that the bus would not make."""
    stranger: bytes = b""
    """One of them."""
    beyond: Counter[int] = field(default_factory=Counter)
    """Partition that there should not be → keys."""
    streams: list[StreamFacts] = field(default_factory=list)
    groups: dict[bytes, GroupFacts] = field(default_factory=dict)
    full: dict[str, Full] = field(default_factory=dict)
    no_policies: set[str] = field(default_factory=set)
    """Types and globs of which something else than a retention is on record."""
    losses: int = 0
    """Entries of bus.loss of the last day, up to a limit."""
    newest_loss: tuple[bytes, bytes] | None = None
    """(id, event) of the newest of them."""
    overdue_seconds: float | None = None
    """By how much the first timer is late; None: none is due."""
    inbox_seconds: float | None = None
    """Age of the oldest delayed event that nobody has put among the timers; None: there is none."""
    timerless: int = 0
    """Events for later of which it is not known any more when they are due."""
    bodiless: int = 0
    """Timers without what they carry."""
    refused: set[str] = field(default_factory=set)
    """Commands that the ACL forbids: what hangs on them is not known."""
    complete: bool = True
    """Everything was looked at; False: some list was longer than its limit."""
    now_ms: int = 0

    def fine(self, words: str, reply: Reply) -> bool:
        """Whether a reply is an answer. A refusal is noted; what is gone or of a wrong type says nothing."""
        if not isinstance(reply, ReplyError):
            return True
        if code(reply) == "NOPERM":
            self.refused.add(words)
        return False

    def at_most(self, limit: int, items: Iterable[T]) -> list[T]:
        """The first of them; that there are more is noted."""
        found = list(items)
        self.complete = self.complete and len(found) <= limit
        return found[:limit]

    def forget_who_lives(self) -> None:
        """The server takes no heartbeats: who has none may work all the same."""
        for group in self.groups.values():
            group.lifeless = None

    def age(self, entry_id: bytes) -> float:
        """Seconds since an entry was added, by its id."""
        return max(0.0, (self.now_ms - id_order(entry_id)[0]) / 1000)
