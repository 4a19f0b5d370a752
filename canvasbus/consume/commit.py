"""One outcome on its way to the server, and how a batch of them is put to the settle script (see SETTLE for the words)."""

from collections.abc import Iterable, Sequence

import trio

from canvasbus.consume.changes import Changes
from canvasbus.consume.delivery import Delivery
from canvasbus.transport.resp import Argument

HEAD_BYTES = 1024
"""Of an entry that is compared, besides its length: the event's id comes first there, and a batch of whole ones may be large."""


class Commit:
    """What the settle script is to do about one delivery."""

    __slots__ = (
        "broken", "burial", "changes", "compares", "count", "delivery", "derived", "done", "lost", "payloads", "pool", "size",
        "unsure",
    )  # fmt: skip

    def __init__(
        self,
        delivery: Delivery,
        payloads: list[tuple[bytes, bytes]],
        *,
        derived: int = 0,
        count: int | None = None,
        burial: bool = False,
        lost: bool = False,
        changes: Changes | None = None,
        pool: str = "",
    ) -> None:
        self.delivery = delivery
        self.payloads = payloads
        self.changes = changes
        self.size = sum([len(data) for _, data in payloads]) + (changes.size if changes else 0)
        self.derived = derived
        self.count = count
        """What the count of deliveries is to be; None: this one acknowledges."""
        self.burial = burial
        """It goes through at maxmemory too, and waits in hand when its stream is refused."""
        self.lost = lost
        """Its entry is gone from the stream, and pending under whatever name."""
        self.pool = pool
        """Where the entry goes instead of being acknowledged."""
        self.compares = False
        """What lies under the entry's id is compared with what was read: a server that lost its last seconds, and whose clock
        is behind the last id of the stream, has given the id to another event."""
        self.unsure = False
        """It was sent and no answer came: it may have been committed."""
        self.broken = 0
        """How often the connection over which it was sent has broken at that."""
        self.done: trio.Event | None = None
        """Set when the server has it; there is one only where somebody waits."""

    @property
    def verb(self) -> str:
        """What the settle script calls it."""
        if self.count is not None:
            return "try"
        return "park" if self.pool else "lose" if self.lost else "bury" if self.burial else "ack"

    @property
    def needs_memory(self) -> bool:
        """A server at its maxmemory may refuse it."""
        return not self.burial and bool(self.payloads or self.changes)


def script_words(commits: Sequence[Commit]) -> tuple[Iterable[bytes], str, list[Argument]]:
    """The keys that the outcomes touch, a letter for the type of each, and the outcomes in the script's words."""
    places: dict[bytes, int] = {}
    kinds: list[str] = []

    def index(key: bytes, kind: str = "x") -> int:
        place = places.get(key)
        if place is None:
            place = places[key] = len(places) + 2
            kinds.append(kind)
        return place

    args: list[Argument] = []
    for commit in commits:
        delivery, changes = commit.delivery, commit.changes
        stream = index(delivery.topic.stream)
        compares = commit.compares and not commit.lost
        args += (stream, delivery.entry_id, commit.verb)
        args.append(compares + len(commit.payloads) + (len(changes) if changes else 0))
        if compares:
            read = b"".join(delivery.fields)
            args += ("same", stream, delivery.entry_id, len(read), read[:HEAD_BYTES])
        if changes:
            args += changes.before(index)
        for to, data in commit.payloads:
            args += (index(to), data)
        if changes:
            args += changes.after(index)
        if commit.count is not None:
            args.append(commit.count)
        elif commit.pool:
            args.append(commit.pool)
    return places, "".join(kinds), args
