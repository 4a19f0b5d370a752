"""Handlers with `dedupe=`: an event has its effect once, although it lies on the stream twice.

Theory of operation. The bus delivers an *entry* at least once and settles it once. An *event* may have several entries:
published again by a producer that knows nothing of dedupe, copied by a bridge, replayed. For handlers that ask for it the
settle script therefore compares a mark of the event's id, in the same step as everything else (SETTLE, "once"): was it
there, under another entry, the outcome is not committed, no derived event, timer or state of it, and the entry is
acknowledged; was it not, the mark is set with the effects. That holds across processes and crashes, whoever is first.

The mark names the entry under which the event was handled. That entry may run again: `groups reset` gives it out once
more on purpose. A dead letter takes the mark along that its own entry has set (on an earlier reading), so that it runs
when it is redriven. (Then it is marked under its new entry: after a reset beyond it, the old one counts as the double.)

The script is all that the promise needs. So that the outside is not called twice either, as far as that can be had for
little, a handler is not even run when

* its event's mark was there when the entry was read: one MGET for each stream of a read; other ways into a lane, retries
  among them, ask for theirs just before the run;
* an entry of the same event is in hand here: it waits until that one is settled, and then asks.

Two processes that run two entries of one event at the same moment do call the outside twice.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, Literal

from canvasbus.consume.changes import Changes
from canvasbus.consume.delivery import Delivery, Topic
from canvasbus.errors import TransportError
from canvasbus.transport.link import Link
from canvasbus.transport.resp import ReplyError, chunks, command

TWIN_SECONDS = 0.2
"""After so long an entry whose event is in hand under another entry is looked at again."""

_TIDY_AT = 5000


class NotRun:
    """Why a handler was not run."""

    def __init__(self, why: Literal["duplicate", "twin"]) -> None:
        self.why = why

    def __repr__(self) -> str:
        return f"<NotRun {self.why}>"


DUPLICATE: Final = NotRun("duplicate")
"""The group has handled this event, under another entry."""
TWIN: Final = NotRun("twin")
"""Another entry of this event is in hand; whether it comes to its effect is to be seen."""


class Inbox:
    """The marks of one handler."""

    def __init__(self, group: str, milliseconds: int) -> None:
        self._group = group
        self._milliseconds = milliseconds
        self._in_hand: dict[bytes, tuple[Topic, bytes]] = {}
        """Event id → the entry of it that was begun; it counts as long as it is held."""

    async def look(self, link: Link, deliveries: list[Delivery]) -> None:
        """Note the marks of what was just read. Raises TransportError; nothing is lost by that."""
        readable = [delivery for delivery in deliveries if delivery.error is None]
        for some in chunks(readable):
            (marks,) = await link.request(command("MGET", *map(self._key, some)))
            if isinstance(marks, ReplyError):  # an older ACL; each will ask for itself
                return
            for delivery, mark in zip(some, marks, strict=True):
                delivery.mark = mark or b""

    async def judge(self, delivery: Delivery) -> NotRun | None:
        """Why the delivery must not run now; None: it may."""
        assert delivery.envelope is not None
        event_id, topic = delivery.envelope.id.bytes, delivery.topic
        twin = self._in_hand.get(event_id)
        if twin is not None and twin != (topic, delivery.entry_id):
            delivery.mark = None  # what was read is from before the twin's end
            if twin[1] in twin[0].held:
                return TWIN
        if len(self._in_hand) >= _TIDY_AT:
            self._in_hand = {i: (t, entry_id) for i, (t, entry_id) in self._in_hand.items() if entry_id in t.held}
        self._in_hand[event_id] = topic, delivery.entry_id
        mark, delivery.mark = delivery.mark, None  # it is good for one run, soon after it was read
        if mark is None:
            try:
                mark = await topic.settler.states.shared.call("GET", self._key(delivery))
            except TransportError:
                mark = b""  # the script will tell
        return DUPLICATE if isinstance(mark, bytes) and mark not in (b"", _entry(delivery)) else None

    def around(self, call: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Any]:
        """The call of a handler of single events, which returns what `judge` says instead of being made, and never None:
        there is always a mark to commit."""

        async def unless_double(event: Any, delivery: Any) -> Any:
            not_run = await self.judge(delivery)
            result = not_run or await call(event, delivery)
            return () if result is None else result

        return unless_double

    def mark(self, delivery: Delivery, changes: Changes | None) -> Changes:
        """Let the changes be made once for this event."""
        changes = changes or Changes()
        changes.once(self._key(delivery), _entry(delivery), self._milliseconds)
        return changes

    def unmark(self, delivery: Delivery) -> Changes | None:
        """What a dead letter takes along; None: nothing can be known of its event."""
        if delivery.envelope is None:
            return None
        changes = Changes()
        changes.unmark(self._key(delivery), _entry(delivery))
        return changes

    def _key(self, delivery: Delivery) -> bytes:
        assert delivery.envelope is not None
        return delivery.topic.settler.keys.done(self._group, delivery.envelope.id.hex)

    def __repr__(self) -> str:
        return f"<Inbox {self._group} {len(self._in_hand)} remembered>"


def _entry(delivery: Delivery) -> bytes:
    """What the mark says: the entry id, behind ~ that of a redriven one, whose stream counts for itself."""
    topic = delivery.topic
    own = topic.stream == topic.settler.keys.stream(topic.event_type)
    return delivery.entry_id if own else b"~" + delivery.entry_id
