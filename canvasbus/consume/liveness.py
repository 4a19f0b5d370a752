"""Who is alive.

Theory of operation. Every worker incarnation counts: once a second `HINCRBY beats <consumer> 1`, from a thread and a
connection of its own, so that a handler that blocks trio's loop does not look dead. Whoever watches compares counts on
its own monotonic clock: a count that has not moved for `limit` seconds means dead. The count says nothing by itself,
so no clock but the watcher's matters, and no TTL decides: measured, a key with a TTL called living workers dead in an
outage, at maxmemory, without replicas and after a jump of the server's clock (4 of 5 troubles; this one in none).

A watcher judges only while its own beats get through: in trouble that everybody has, everybody's count stands still.
Any failure of a look starts all observations over, and so does a long time without one: whoever was paused for a
minute may have been paused together with all the others, and wake up first.

The thread beats only while the loop turns. A loop that has been silent for `max_block` seconds, and whose running
handlers have not asked for longer (`ctx.extend`), is stuck: the beat ends, so that others take over, the stack is told,
and `on_stuck` is called. That takes two looks in a row: a process that was stopped (SIGSTOP, a paused container) may wake
up in this thread first. A worker program ends itself there, for nobody else could; inside somebody's own program it is
only told, and should the loop turn again, the worker finds itself fenced and joins anew.

Not promised: a native call that holds the GIL for longer than the limit stops the thread too, and looks dead.
"""

import math
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress

import trio

from canvasbus import clock
from canvasbus.errors import TransportError
from canvasbus.log import get_logger
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.link import Link
from canvasbus.transport.resp import Packet, Reply, ReplyError, pack, translate
from canvasbus.transport.server import Server
from canvasbus.wire.keys import Keys

BEAT_SECONDS = 1.0
DEAD_SECONDS = 5.0
"""A consumer whose count stands still for so long is dead."""

BLOCKED_SECONDS = 3.0
"""A loop that makes no progress for so long is told: some handler waits without giving way to the others."""

PULSE_SECONDS = 1.0
"""How often a loop shows that it turns."""

MAX_BLOCK_SECONDS = 60.0
"""A loop that makes no progress for so long stops the beat: the worker is stuck, and others shall have its work."""

AGAIN_SECONDS = 0.2
"""Between the two looks that find a loop stuck: what a loop takes to turn again that was stopped with its process."""

TELL_SECONDS = 2.0
"""What telling of a blocked or stuck loop may take: the loop may be stuck for the very reason that nobody reads the log."""

ANSWER_SECONDS = 2.0
"""A beat that is not answered for so long is lost."""

COMPLAIN_SECONDS = 60.0
"""Between two complaints about refused beats."""

SILENT_SECONDS = ANSWER_SECONDS + 0.5

log = get_logger("canvasbus.worker")


def count_in(value: bytes) -> int | None:
    """A count of heartbeats as it lies on the server; None: it is none. (Python refuses to read 5,000 digits.)"""
    return int(value) if value.isdigit() and len(value) < 20 else None


class Watcher:
    """Judges consumers by their counts. Pure: time and counts come in as arguments."""

    def __init__(self, me: str, limit: float = DEAD_SECONDS) -> None:
        self._me = me
        self._limit = limit
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._mine: tuple[int | None, float] = (None, float("-inf"))
        self._looked = float("-inf")

    def reset(self) -> None:
        """A look failed, or the connection may lead to another server: what was seen before means nothing."""
        self._seen.clear()
        self._mine = (None, float("-inf"))

    def judge(self, now: float, beats: dict[str, int], consumers: Iterable[str]) -> list[str]:
        """The consumers that are dead at `now`, sorted.

        `beats` are the counts on the server, `consumers` all names that own or could own entries; a consumer that
        never beat is judged like one whose count stands still.
        """
        if now - self._looked > self._limit / 2:
            self.reset()
        self._looked = now
        mine = beats.get(self._me)
        if mine is None or mine != self._mine[0]:
            self._mine = (mine, now)
        if mine is None or now - self._mine[1] > self._limit / 2:
            self._seen.clear()
            return []
        names = {*beats, *consumers} - {self._me}
        self._seen = {name: seen for name, seen in self._seen.items() if name in names}
        dead = []
        for name in sorted(names):
            count = beats.get(name)
            seen = self._seen.get(name)
            if seen is None or seen[0] != count:
                self._seen[name] = (count, now)
            elif now - seen[1] >= self._limit:
                dead.append(name)
        return dead

    def __repr__(self) -> str:
        return f"<Watcher {self._me} watches {len(self._seen)}>"


class Progress:
    """What a loop leaves behind for hearts and for /livez: when it was last seen turning. One for each loop, whatever
    runs on it, from before its workers join until after they have left."""

    def __init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        self.at = clock.monotonic()

    def stuck(self, max_block: float, allowed: float) -> bool:
        """It has been silent for `max_block` seconds, and the time until which handlers said that they would take is
        over."""
        now = clock.monotonic()
        return now - self.at > max_block and now >= allowed

    async def run(self) -> None:
        """Show that the loop turns, whatever the server does, until cancelled."""
        while True:
            self.mark()
            await trio.sleep(PULSE_SECONDS)

    def __repr__(self) -> str:
        return f"<Progress {clock.monotonic() - self.at:.1f} s ago>"


class Heart:
    """Beats for one incarnation. In production a thread; on a server that lives in this process, a task."""

    def __init__(
        self,
        server: Server,
        keys: list[Keys],
        group: str,
        consumer: str,
        progress: Progress,
        *,
        every: float = BEAT_SECONDS,
        blocked: float = BLOCKED_SECONDS,
        max_block: float = MAX_BLOCK_SECONDS,
        allowed: Callable[[], float] = lambda: 0.0,
        on_stuck: Callable[[], None] | None = None,
        accepts: Callable[[], bytes] = lambda: b"",
    ) -> None:
        """`max_block` and `allowed`: the loop is stuck when it was silent for so many seconds, and the time until which
        handlers said that they would take is over. `on_stuck` is called then, from the heart's thread, and so is
        `accepts` before each beat: what the worker takes, told where that is not known on the server."""
        self.beats = 0
        """Beats that the server took."""
        self.refused = ""
        """What the server says instead of counting, or what the beat failed of here; empty: it counts, or is away."""
        self._complain_at = -math.inf
        self._complained = False
        self._server = server
        self._keys = keys
        self._consumer = consumer
        self._beat = Packet(b"".join([pack("HINCRBY", k.beats(group), consumer, 1) for k in keys]), len(keys))
        self._accepts = accepts
        self._said = b""
        """What the server knows of us: what we accept; empty: nothing."""
        self._group = group
        self._progress = progress
        self._every = every
        self._blocked = blocked
        self._max_block = max_block
        self._allowed = allowed
        self._on_stuck = on_stuck
        self._loop = 0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start_thread(self) -> None:
        """Start beating from a thread. Call it in the thread of the loop that is watched."""
        self._progress.mark()
        self._loop = threading.get_ident()
        self._thread = threading.Thread(target=self._run, name=f"canvasbus-heart-{self._group}", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        link = BlockingLink(self._server, timeout=ANSWER_SECONDS)
        told = suspected = stuck = False
        pause = 0.0  # the first beat goes at once
        while not self._stop.wait(pause):
            pause = self._every
            silent = clock.monotonic() - self._progress.at
            if self._progress.stuck(self._max_block, self._allowed()):
                if suspected and not stuck:
                    self._stuck(silent)
                    stuck = True
                suspected, pause = True, min(pause, AGAIN_SECONDS)
                continue  # a loop that gets free again is alive again: silent, it could not judge others either
            suspected = stuck = False
            if silent > self._blocked and not told:
                self._tell_blocked(silent)
            told = silent > self._blocked
            try:
                says, packet = self._next()
                self._sent(link.request(packet), says)
            except TransportError:
                self._said = b""  # told by those who read and settle
            except Exception as error:  # there may be memory, or a file, for the next one
                self._said = b""
                link.close()
                with suppress(Exception):
                    self._missed("this worker cannot beat", f"{error!r}".removesuffix("()"))
        link.close()

    def _next(self) -> tuple[bytes, Packet]:
        """The next beat; behind it, where that is news, what we accept: never there without a heartbeat, whose end would
        be its end."""
        says = self._accepts()
        if says == self._said:
            return says, self._beat
        news = [pack("HSET", k.accepts(self._group), self._consumer, says) for k in self._keys]
        return says, Packet(b"".join([self._beat.data, *news]), 2 * len(self._keys))

    def _sent(self, replies: list[Reply], says: bytes) -> None:
        """A server at its maxmemory, say, answers and has not counted: that is no beat."""
        counts, told = replies[: len(self._keys)], replies[len(self._keys) :]
        no = next((count for count in counts if isinstance(count, ReplyError)), None)
        self.beats += no is None
        if no is not None:
            self._missed("the server refuses this worker's heartbeat", str(translate(no, "beat")))
        else:
            self.refused = ""
            if self._complained:
                self._complained = False
                self._tell(log.info, "the server takes this worker's heartbeat again")
        if told:
            self._said = b"" if any(isinstance(reply, ReplyError) for reply in told) else says
        elif 1 in counts:  # it had forgotten our beats, and the rest with them
            self._said = b""

    def _missed(self, what: str, why: str) -> None:
        """A beat was not counted, though the server is not away."""
        self.refused = why
        if clock.monotonic() >= self._complain_at:
            self._complain_at, self._complained = clock.monotonic() + COMPLAIN_SECONDS, True
            self._tell(log.error, what, error=why)

    def _tell_blocked(self, seconds: float) -> None:
        self._tell(
            log.warning,
            "a handler blocks the loop: nothing else runs, timeouts included. Make it a plain function (those run in "
            "threads), or await trio.to_thread.run_sync",
            **self._where(seconds),
        )

    def _stuck(self, silent: float) -> None:
        self._tell(
            log.critical,
            "the worker's loop has made no progress; its heartbeat stops and others take over its events",
            **self._where(silent),
        )
        if self._on_stuck:
            self._on_stuck()

    def _where(self, seconds: float) -> dict[str, object]:
        frame = sys._current_frames().get(self._loop)
        stack = "".join(traceback.format_stack(frame)[-8:]) if frame else ""
        return {"seconds": round(seconds, 1), "stack": stack}

    def _tell(self, how: Callable[..., object], what: str, **facts: object) -> None:
        """In a thread of its own: where nobody reads the log, telling would end the beat, and nobody would see a stuck
        loop."""
        facts = {"group": self._group} | facts
        teller = threading.Thread(target=how, args=(what,), kwargs=facts, name="canvasbus-stuck", daemon=True)
        try:
            teller.start()
        except RuntimeError:  # no more threads here, and a heart that ended of that would end nothing that is stuck
            how(what, **facts)
        else:
            teller.join(TELL_SECONDS)

    async def run_task(self) -> None:
        """Beat from a trio task, over a connection of its own as the thread does."""
        link = Link(self._server, timeout=ANSWER_SECONDS)
        try:
            while True:
                says, packet = self._next()
                try:
                    self._sent(await link.request(packet), says)
                except TransportError:
                    self._said = b""
                await trio.sleep(self._every)
        finally:
            with trio.CancelScope(shield=True):
                await link.aclose()

    def stop(self) -> None:
        self._stop.set()

    def join(self, timeout: float) -> None:
        if self._thread is not None:
            self._thread.join(timeout)

    async def wait_silent(self) -> None:
        """Return when, after `stop`, no beat is on its way any more: a late one would leave our name behind for ever. What
        has not been answered by its time-out is not waited for. (A limiter of its own: abandoned handlers may have all
        threads of trio's.)"""
        if self._thread is not None:
            once = trio.CapacityLimiter(1)
            await trio.to_thread.run_sync(self.join, SILENT_SECONDS, abandon_on_cancel=True, limiter=once)

    def __repr__(self) -> str:
        return f"<Heart of {self._group}, {self.beats} beats>"
