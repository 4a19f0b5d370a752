"""The thread that sends: drives fenced batches over blocking links, and tells people what it cannot do.

It never gives up on its own: while the server is away, refuses the password or has no memory left, the batch in hand
is tried again and the others wait in the bounded buffer. It sleeps only in `_pause`, and for work in a queue's `get`.
"""

import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from canvasbus import clock, ids
from canvasbus.errors import BufferFull, CanvasbusError, Refused, TransportError, Unavailable
from canvasbus.produce import process
from canvasbus.produce.buffer import Buffer, OnDelivery
from canvasbus.produce.fenced import Result, declare_partitions
from canvasbus.produce.once import BY_MARKS, Dedupe, PartitionSender
from canvasbus.produce.spool import Sending
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.server import Server
from canvasbus.wire.keys import Keys
from canvasbus.wire.outgoing import Outgoing

logger = logging.getLogger("canvasbus.producer")

COMPLAIN_SECONDS = 60.0
"""At most one warning in so many seconds."""
REFUSED_SECONDS = 30.0
"""The longest pause between attempts while the server refuses this producer as such; it begins with one second."""

T = TypeVar("T")


class _Stop(Exception):
    """The producer was closed and its time is up."""


class _Lane:
    """What sends the events of one partition."""

    def __init__(
        self, server: Server, pause: Callable[[float], None], new_sender: Callable[[str | None], PartitionSender]
    ) -> None:
        self.link = BlockingLink(server, sleep=pause)
        self._new_sender = new_sender
        self.sender = new_sender(None)

    def resume(self, items: Sequence[Outgoing], left: Sending) -> None:
        """Go on in place of the process that died with these events on their way."""
        self.sender = self._new_sender(left.fence)
        self.sender.suspect(items, left.cursors, by_marks=left.fence == BY_MARKS)


class Sender:
    """Takes from a buffer and sends. Its thread starts with the first event and is started anew in a forked child."""

    def __init__(
        self,
        server: Server,
        namespace: str,
        partitions: int,
        flush_timeout: float,
        on_delivery: OnDelivery | None,
        replicated: bool = False,
        dedupe: Dedupe = Dedupe(),  # noqa: B008  frozen
    ) -> None:
        self.buffer: Buffer
        self.flush_timeout = flush_timeout
        self.callbacks: dict[bytes, list[OnDelivery]] = {}
        """Event id → who is told of this one event; more than one when it was published twice under its key."""
        self._server = server
        self._namespace = namespace
        self._partitions = partitions
        self._on_delivery = on_delivery
        self._replicated = replicated
        self._dedupe = dedupe
        self._reset()

    def send_from(self, buffer: Buffer) -> None:
        """This is where the events wait. From now on it hears of forks and of the end of the process, not before: a Producer
        whose buffer could not be made may be kept by the traceback of its error until then."""
        self.buffer = buffer
        process.watch(self)

    def _reset(self) -> None:
        # In a child the parent's sockets are only let go of: close() in a child ends its own copy of the descriptor, and
        # redis-py asks for the pid before it would shut the session down.
        self.callbacks.clear()
        self._thread: threading.Thread | None = None
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._lanes: list[_Lane] = []
        self._declared = False
        self._starting = False
        self._stopping = False
        self._leaving = False
        self._troubled = False
        self._quiet_until = 0.0
        self._told_failed = 0
        self._muted = ""
        self._told_end = False
        self._copy: int | None = None
        """on_delivery has forked, and this is the child: the thread that the parent's sender has become here."""
        self.callback_errors = 0
        self.log_errors = 0
        self.duplicates = 0
        """Events that were there already by their mark."""
        self.last_error: str | None = None

    # --- from other threads --------------------------------------------------------------------------------------

    def rouse(self) -> bool:
        """There is work. Called with the buffer's lock held. False: nobody comes, the next event must try again."""
        if self._starting:  # a signal handler publishes while its own thread is in here
            return False
        if self._thread is not None and self._thread.is_alive():
            self._wake.put(None)
            return True
        self._starting = True
        try:
            process.hook_exit()
            self._thread = threading.Thread(target=self._run, name="canvasbus-producer", daemon=True)
            self._thread.start()
        except RuntimeError as error:  # no more threads here, or the interpreter is ending
            self._thread = None
            self.last_error = f"the sender thread cannot start: {error}"
            return False
        finally:
            self._starting = False
        return True

    def tell_of(self, raw_id: bytes, callback: OnDelivery) -> None:
        """Call this when the fate of the event is known."""
        with self.buffer.lock:
            self.callbacks.setdefault(raw_id, []).append(callback)

    def tell_no_more_of(self, raw_id: bytes, callback: OnDelivery) -> None:
        """Do not: the event was not accepted. (Another one under the same key, which has the same id, may have been.)"""
        with self.buffer.lock:
            callbacks = self.callbacks.get(raw_id, [])
            if callback in callbacks:
                callbacks.remove(callback)
            if not callbacks:
                self.callbacks.pop(raw_id, None)

    def lament(self, why: str, at_once: bool = False) -> None:
        """Tell what is wrong with the buffer; "": an event was dropped because publishing is muted. `at_once`: also when
        something was told less than a minute ago."""
        self.last_error = why or self._muted
        if at_once:
            self._quiet_until = 0.0
        self._complain()

    def nudge(self) -> None:
        """Try again now instead of at the end of the pause."""
        if self._troubled:
            self._wake.put(None)

    def leave(self) -> None:
        """Nobody publishes any more: send what is queued, then end. Takes no lock, so that `__del__` may call it."""
        self._leaving = True
        self._wake.put(None)

    def stop(self, wait: float) -> None:
        """End the thread; what is still queued is dropped. Returns after `wait` seconds at the latest."""
        self._stopping = True
        self._wake.put(None)
        thread = self._thread
        if thread is None:
            self._abandon(None)
        elif thread is not threading.current_thread():
            thread.join(wait)

    def in_thread(self) -> bool:
        """True inside on_delivery."""
        return threading.current_thread() is self._thread

    def after_fork(self) -> None:
        copy = threading.get_ident() if self.in_thread() else None
        self._reset()
        self._copy = copy
        self.buffer.reset()
        if not self._server.shared:
            self._muted = f"{self._server.name} lives in the parent process: events of a forked child cannot get there"
            self.buffer.close("muted")

    def at_exit(self, deadline: float) -> None:
        waiting = self.buffer.waiting
        self._muted = "the program is ending: events that are published after the last flush are dropped"
        if not self.buffer.closed:
            self.buffer.close("muted")
        if waiting:
            self.nudge()
        self.buffer.wait_settled(deadline)
        self.tell_end("the program ends", self.flush_timeout, self.buffer.waiting, self.lost())
        # No wait for the thread: being a daemon it ends with the interpreter, and it must not log meanwhile.
        self.stop(0.0 if not self.buffer.keeps or self.buffer.waiting else 1.0)  # but for an empty spool to be removed

    def tell_end(self, when: str, seconds: float, waiting: int, lost: str) -> None:
        """Say, once, what did not reach the server within its time, and is dropped or left to the next Producer; and what was
        lost before."""
        if self._told_end:
            return
        self._told_end = True
        goal = "the server and a replica of it" if self._replicated else "the server"
        if waiting:
            self._log(
                logging.WARNING, "%s: %s and %s did not reach %s within %g s%s%s%s",
                self._server.name, when, _events(waiting), goal, seconds, self._because(), self._kept(waiting),
                f"; {lost} before that" if lost else "",
            )  # fmt: skip
        elif lost:
            self._log(logging.WARNING, "%s: %s; of its events %s in all", self._server.name, when, lost)

    def lost(self) -> str:
        """What became so far of the events that are not, or not known to be, on the server; "": there are none."""
        words = ("dropped", "refused", "unknown")
        return ", ".join(f"{number:,} {word}" for word in words if (number := getattr(self.buffer, word)))

    def _because(self) -> str:
        return f" ({self.last_error})" if self._troubled and self.last_error else ""

    def _kept(self, waiting: int) -> str:
        if not self.buffer.keeps:
            return ""
        lost = waiting - (kept := self.buffer.kept())
        told = f"; {lost:,} of them are not in {self.buffer.keeps}, and lost" if lost > 0 else ""
        if kept:
            told += f"; what is in {self.buffer.keeps} is sent by the next Producer with that spool"
        return told

    def _log(self, level: int, text: str, *args: object, trace: bool = False) -> None:
        """Tell the log. What one of its handlers raises is counted: no event is lost by it, and no publish fails."""
        try:
            logger.log(level, text, *args, exc_info=trace)
        except Exception as error:
            self.log_errors += 1
            if self.log_errors == 1 or self.last_error is None:
                self.last_error = f"a handler of the log raised {type(error).__name__}: {error}"

    # --- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        buffer = self.buffer
        buffer.consumer = threading.get_ident()
        in_hand: tuple[int, list[Outgoing]] | None = None
        try:
            while not self._stopping:
                in_hand = self._persist(buffer.take)
                if in_hand is None:
                    self._tell_drops()
                    if self._leaving:
                        return
                    self._wake.get()
                    continue
                lane, items = in_hand
                if buffer.doubt is not None:
                    self._lane(lane).resume(items, buffer.doubt)
                for run in self._lane(lane).sender.runs(items):
                    results = self._send(lane, run)
                    self._settle(lane, run, results)
                    items = items[len(run) :]
                    in_hand = (lane, items) if items else None
        except _Stop:
            pass
        finally:
            self._abandon(in_hand)
            self._disconnect()
            if not (self._stopping or self._leaving):
                # By a fault: whoever publishes or flushes next starts another thread. Until here this one was alive, and was
                # roused in vain.
                with buffer.lock:
                    self._thread = None
                    buffer.nobody_takes()

    def _disconnect(self) -> None:
        lanes, self._lanes = self._lanes, []
        for lane in lanes:
            lane.link.close()

    def _lane(self, number: int) -> _Lane:
        if not self._lanes:
            self._lanes = [self._new_lane(Keys(self._namespace, n)) for n in range(self._partitions)]
        return self._lanes[number]

    def _send(self, lane: int, items: Sequence[Outgoing]) -> list[Result]:
        try:
            if not self._declared:
                first = self._lane(0)
                self._persist(lambda: first.link.run(declare_partitions(self._namespace, self._partitions)))
                first.sender.forget_connection()
                self._declared = True
            sender, link = self._lane(lane).sender, self._lane(lane).link
            known = sender.statistics.duplicates
            results = self._persist(lambda: link.run(sender.send(items)))
            self.duplicates += sender.statistics.duplicates - known
        except _Stop:
            raise
        except Exception as error:
            # A fault of ours. The batch must not be tried for ever, nor may its connection and fence be trusted.
            self._log(logging.ERROR, "%s: sending failed in an unforeseen way", self._server.name, trace=True)
            self.last_error = f"{type(error).__name__}: {error}"
            self._disconnect()
            return [Unavailable(f"sending failed: {error!r}", ambiguous=True)] * len(items)
        if self._troubled:
            self._troubled = False
            self._declared = False  # it may have come back empty
            self._log(logging.INFO, "%s takes events again; %s wait", self._server.name, _events(self.buffer.waiting))
        return results

    def _new_lane(self, keys: Keys) -> _Lane:
        def new_sender(incarnation: str | None) -> PartitionSender:
            return PartitionSender(
                keys, incarnation=incarnation, replicated=self._replicated, partitions=self._partitions,
                dedupe=self._dedupe, note=self.buffer.note,
            )  # fmt: skip

        return _Lane(self._server, self._pause, new_sender)

    def _persist(self, attempt: Callable[[], T]) -> T:
        """Try until there is a result: a server that is away soon again, one that refuses us slowly."""
        away, refused = 0.05, 1.0
        while True:
            try:
                return attempt()
            except Refused as error:
                self.last_error = str(error)
                self._pause(refused)
                refused = min(refused * 2, REFUSED_SECONDS)
            except TransportError as error:
                self.last_error = str(error)
                self._pause(away)
                away = min(away * 2, 2.0)

    def _pause(self, seconds: float) -> None:
        """Between two attempts. Ends early when somebody flushes or closes."""
        for lane in self._lanes:
            failure = lane.sender.statistics.last_failure
            if failure is not None:
                self.last_error, lane.sender.statistics.last_failure = str(failure), None
        self._troubled = True
        self.buffer.tend()
        self._tell_drops()
        for _ in range(self._wake.qsize()):  # whoever wanted an attempt just had one
            self._wake.get()
        if not self._stopping:
            self._complain()
            try:
                self._wake.get(timeout=seconds)
            except queue.Empty:
                pass
        if self._stopping:
            raise _Stop

    def _complain(self) -> None:
        now = clock.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + COMPLAIN_SECONDS
        buffer = self.buffer
        failed = buffer.failed
        lost = f", {failed:,} dropped, refused or unknown so far" if failed else ""
        wait = f"; {_events(buffer.waiting)} ({buffer.bytes:,} bytes in memory) wait" if self._troubled else ""
        self._log(logging.WARNING, "%s%s%s", self.last_error, wait, lost)

    def _settle(self, lane: int, items: Sequence[Outgoing], results: list[Result]) -> None:
        """Callbacks first: when flush returns all of them have run."""
        refused = unknown = 0
        if set(map(type, results)) != {bytes}:
            for result in results:
                if isinstance(result, bytes):
                    continue
                if isinstance(result, Unavailable) and result.ambiguous:
                    unknown += 1
                else:
                    refused += 1
                self.last_error = str(result)
        if self._on_delivery is not None or self.callbacks:
            for item, result in zip(items, results, strict=True):
                self._tell(item.raw_id, None if isinstance(result, bytes) else result)
        stored = len(items) - refused - unknown
        self.buffer.settle(lane, items, stored=stored, refused=refused, unknown=unknown)
        self._tell_drops()
        if self.buffer.failed != self._told_failed and not self._stopping:
            self._told_failed = self.buffer.failed
            self._complain()

    def _tell_drops(self) -> None:
        drops = self.buffer.take_drops()
        if drops:
            error = BufferFull(self.buffer.why_dropped())
            for raw_id in drops:
                self._tell(raw_id, error)
            self.buffer.told(len(drops))
        if self.buffer.dropped and self.last_error is None:
            self.last_error = "events were published faster than the server took them"

    def _tell(self, raw_id: bytes, error: CanvasbusError | None) -> None:
        own: OnDelivery | None = None
        if self.callbacks:
            with self.buffer.lock:
                if callbacks := self.callbacks.get(raw_id):
                    own = callbacks.pop(0)
                    if not callbacks:
                        del self.callbacks[raw_id]
        for callback in (own, self._on_delivery):
            if callback is None:
                continue
            try:
                callback(ids.from_bytes(raw_id), error)
            except BaseException as raised:
                self.callback_errors += 1
                self.last_error = f"on_delivery raised {type(raised).__name__}: {raised}"
                if self.callback_errors == 1:
                    text = "on_delivery raised; further failures are only counted (callback_errors)"
                    self._log(logging.ERROR, text, trace=True)
            if self._copy == threading.get_ident():
                process.end_copy()

    def _abandon(self, in_hand: tuple[int, list[Outgoing]] | None) -> None:
        """Closed with events left: count and tell them, unless they are kept."""
        error = Unavailable(f"the Producer was closed before the server had the event{self._because()}")
        maybe = Unavailable(f"{error}; it may be there all the same", ambiguous=True)
        if self.buffer.keeps:
            self._tell_drops()
            for raw_ids, why in zip(self.buffer.leave(), (error, maybe), strict=True):
                for raw_id in raw_ids:
                    self._tell(raw_id, why)
            self._tell_drops()  # of a handler that published while we were about to leave
            self.callbacks.clear()
            return
        while in_hand is not None or (in_hand := self.buffer.take()) is not None:
            lane, items = in_hand
            for run in self._lane(lane).sender.runs(items):
                unsure = self._lane(lane).sender.unsure_of(run)
                for item in run:
                    self._tell(item.raw_id, maybe if unsure else error)
                self.buffer.settle(lane, run, unknown=len(run) if unsure else 0)
            in_hand = None
        self._tell_drops()

    def __repr__(self) -> str:
        thread = self._thread
        return f"<Sender {self._server.name} {'running' if thread is not None and thread.is_alive() else 'idle'}>"


def _events(count: int) -> str:
    return "1 event" if count == 1 else f"{count:,} events"
