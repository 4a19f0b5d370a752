"""What a namespace needs done by somebody: timers that are due are published, streams are trimmed, groups of killed
instances removed.

Every bus offers itself; the one that holds the lease of a partition does it. The lease only spares the others the work:
what is done is done by scripts that may run twice, anywhere, at any time.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import trio

from canvasbus import ids
from canvasbus.consume import instances
from canvasbus.consume.lease import hold_lease, release_lease
from canvasbus.consume.retention import Trimmer
from canvasbus.contract.bus_events import BusLoss
from canvasbus.contract.event import Event
from canvasbus.errors import CanvasbusError, ConfigError, TransportError, Unavailable
from canvasbus.log import get_logger
from canvasbus.transport.link import SharedLink
from canvasbus.transport.resp import check
from canvasbus.transport.timer_scripts import DUE, FIRE, MATCH
from canvasbus.wire.keys import INBOX_GROUP, LATER_INBOX, Keys

LOOK_SECONDS = 0.5
"""Between two looks at the timers while there are some."""

IDLE_SECONDS = 1.0
"""While there are none; what is set with a shorter delay than that comes up to so much late."""

RENEW_SECONDS = 1.0
"""Between two words of whoever holds the lease, or would like to (how long it lasts: `lease`)."""

LEAVE_SECONDS = 0.5
"""What giving the lease away may take."""

STEADY_SECONDS = 5.0
"""Whoever was away, or whose server was, or had no memory for heartbeats, calls no group dead for so long: the others may
have been away with him."""

TELL_SECONDS = 60.0
"""Between two words in the log about the same failure."""

AT_ONCE = 500
BODIES_AT_ONCE = 20
"""When they are looked through they are copied, and each may be as large as an event."""
INBOX_MS = 3_600_000
"""How long publishers find in the inbox what they are unsure of."""

log = get_logger("canvasbus.bus")


class Maintainer:
    """Maintains one partition, while it holds the lease."""

    def __init__(
        self,
        shared: SharedLink,
        keys: Keys,
        *,
        announce: Callable[[Event], None],
        source: str = "",
        partitions: int = 0,
    ) -> None:
        """`source`: of the bus.loss of retention. `partitions`: their number, kept on record even when somebody flushes
        the server; 0: it is not."""
        self.fired = 0
        """Timers published by this one."""
        self.trimmer = Trimmer(keys, source=source)
        self._announce = announce
        self._shared = shared
        self._keys = keys
        self._partitions = partitions if keys.partition == 0 else 0
        self._name = ids.uuid7().hex
        self._tell_again: dict[str, float] = {}
        self._instances = instances.Instances(shared, keys)
        self._work = trio.CancelScope()

    async def run(self) -> None:
        """Maintain until cancelled, or until `leave`."""
        with self._work:
            await self._maintain()

    async def leave(self) -> None:
        """End, and let others go on at once: what is due meanwhile would wait for the end of our lease."""
        self._work.cancel()
        with trio.move_on_after(LEAVE_SECONDS), suppress(TransportError):
            await self._shared.run(release_lease(self._keys.maintainer, self._name))

    async def _maintain(self) -> None:
        """What one part of the work meets with ends none of the others."""
        leased = looked = trim_at = 0.0
        beats = False  # the server would take heartbeats
        since = renewed = -math.inf  # since when it has, and we have heard of it without a pause
        while True:
            wait, now = RENEW_SECONDS, trio.current_time()
            if now >= leased:
                leased, beats = 0.0, False
                with self._told("hold the lease of the maintainer"):
                    ours, beats = await self._hold_lease()
                    leased = now + RENEW_SECONDS if ours else 0.0
                if not (leased and beats) or now - renewed > STEADY_SECONDS:
                    since = now
                renewed = now
            if leased:
                with self._told("fire timers"):
                    wait = await self._fire()
                if beats and now >= looked:
                    looked = now + instances.LOOK_SECONDS
                    with self._told("look for processes that are gone"):
                        await self._instances.look()
                if now >= trim_at:
                    trim_at = now + RENEW_SECONDS
                    with self._told("trim"):
                        trim_at = now + await self._trim(now, judge=now - since >= STEADY_SECONDS)
            await trio.sleep(wait)

    @contextmanager
    def _told(self, part: str) -> Iterator[None]:
        """Tells what a part of the work fails of, each thing once a minute; a server that is away is told by others."""
        try:
            yield
        except (TransportError, ConfigError) as error:
            self._tell(part, error)

    def _tell(self, part: str, problem: CanvasbusError) -> None:
        now, text = trio.current_time(), str(problem)
        if not isinstance(problem, Unavailable) and now >= self._tell_again.get(text, 0.0):
            self._tell_again = {known: due for known, due in self._tell_again.items() if due > now}
            self._tell_again[text] = now + TELL_SECONDS
            log.error("maintaining the namespace fails", part=part, error=text, do="see what `canvasbus doctor` says")

    async def _trim(self, now: float, *, judge: bool) -> float:
        """Remove what retention lets go; returns after how many seconds to look again."""
        looked = await self._shared.run(self.trimmer.look(now, judge=judge))
        for loss in looked.losses:
            log.warning("entries are not kept any more", topic=loss.topic, group=loss.group, why=loss.detail)
        for problem in looked.problems:
            self._tell("trim", problem)
        return looked.wait

    async def _hold_lease(self) -> tuple[bool, bool]:
        keys = self._keys
        record = [("HSETNX", keys.meta, "partitions", self._partitions)] if self._partitions else []
        return await self._shared.run(hold_lease(keys.maintainer, self._name, *record))

    async def _fire(self) -> float:
        """Publish what is due; returns after how many seconds to look again."""
        keys = self._keys
        timers = [keys.timers, keys.timer_bodies]
        reply = check(
            await self._shared.run(DUE.call([*timers, keys.stream(LATER_INBOX)], [AT_ONCE, INBOX_MS, INBOX_GROUP])),
            "look at the timers",
        )
        coming, too_many, due = reply[0], reply[1], reply[2:]
        if too_many:
            await self._match(timers, bodies=too_many > 0)
            return 0.0
        if not due:
            return min(LOOK_SECONDS, coming / 1000) if coming >= 0 else IDLE_SECONDS
        places: dict[bytes, int] = {}
        args: list[bytes | str | int] = []
        for event_type, timer in zip(due[::2], due[1::2], strict=True):
            stream = keys.stream(event_type.decode("utf-8", "replace"))
            args += (places.setdefault(stream, len(places) + 4), event_type, timer)
        fired, gone, *refused = check(
            await self._shared.run(FIRE.call([*timers, keys.topics, *places], args)), "publish what is due"
        )
        self.fired += fired
        if gone:
            self._tell_gone(gone, "what they carry is no longer in", keys.timer_bodies)
        for timer in refused:
            log.error("a timer cannot be published; it is tried again in a minute", timer=_shown(timer))
        return 0.0

    async def _match(self, timers: list[bytes], *, bodies: bool) -> None:
        """Bring timers and their bodies together again; what cannot be is told."""
        back = gone = 0
        cursor: bytes | int = 0
        while True:
            page = [1, cursor, BODIES_AT_ONCE] if bodies else [0, cursor, AT_ONCE]
            reply = await self._shared.run(MATCH.call(timers, page))
            cursor, *counts = check(reply, "look for lost timers")
            back, gone = back + counts[0], gone + counts[1]
            if int(cursor) == 0:
                break
        if back:
            log.warning("events for later were put back: somebody had removed when they are due", events=back)
        if gone:
            why = "when they are due is no longer in" if bodies else "what they carry is no longer in"
            self._tell_gone(gone, why, self._keys.timers if bodies else self._keys.timer_bodies)

    def _tell_gone(self, gone: int, why: str, key: bytes) -> None:
        count = f"{gone:,} {'event' if gone == 1 else 'events'}"
        loss = BusLoss(
            topic="*",
            reason="timer_gone",
            detail=f"{count} for later will not come: {why} {key.decode()}; somebody has removed it",
            lost=gone,
        )
        log.error("events for later are gone", lost=gone, why=loss.detail)
        self._announce(loss)

    def __repr__(self) -> str:
        return f"<Maintainer of {self._keys!r}, {self.fired} timers published>"


def _shown(timer: bytes) -> str:
    return timer.decode("utf-8", "backslashreplace").replace("\n", " ")
