"""Programs that publish with a plain `Producer`: its code, its thread and its spool, in step with the others (lockstep.py).

A program has one thread or two that publish, flushes now and then, and leaves in one of the ways in which programs do:
it closes the Producer, or in a hurry, or lets go of it, or just ends. When it was killed, or has left, the next one starts
over the same spool, and publishes under the same keys once more what it does not know to be stored.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any
from uuid import UUID

import trio
from simulation import lockstep
from simulation.lockstep import Killed, Life, Thread, ask
from simulation.network import SimServer
from simulation.plan import STALE_SECONDS, Happening, Placed, Publish
from simulation.site import Site

from canvasbus import BufferFull, CanvasbusError, EncodeError, Producer, Unavailable, clock
from canvasbus.produce.buffer import SPOOL_BYTES, Buffer
from canvasbus.transport import memory

if TYPE_CHECKING:
    from simulation.world import World

FAST = "/dev/shm"
"""Where files are in memory."""

PROMPT_SECONDS = 4.0
"""A packet may take a second, in both directions, and what comes before it, too."""

SIGNALS, CALLBACKS = 98, 99
"""The numbers of the threads for what handlers of signals and on_delivery publish."""


@dataclass
class Told:
    """One call of on_delivery."""

    fate: str
    """accepted, refused or unknown"""
    why: str
    life: str
    at: int
    """In ms of the server's clock."""
    leaving: bool


@dataclass
class Attempt:
    """One event that a program published, or tried to."""

    n: int
    life: str
    thread: int
    kept: bool
    """It is in the spool when `publish` returns, as far as one can know."""
    how: str
    began: int
    """In ms of the server's clock."""
    returned: bool = False
    raised: str = ""
    """What `publish` raised."""
    leaving: bool = False
    """Its program was about to end then."""
    told: list[Told] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    """What the callback of this one event was told."""

    @property
    def fate(self) -> str:
        """What the program knows. After a kill the next one may be told again, and knows better."""
        if self.raised:
            return "refused"
        fates = [told.fate for told in self.told]
        return "unknown" if not fates else "accepted" if "accepted" in fates else fates[-1]


class Programs:
    """All lives of one program, one after the other."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.plan = world.plan
        self.how = world.plan.producing
        self.dice = Random(f"{world.plan.seed} producers")
        self.todo = list(world.plan.produces)
        self.left = len(self.todo)
        """How many calls have not come to an end."""
        self.attempts: list[Attempt] = []
        self.seen: Counter[str] = Counter()
        self.life: Life | None = None
        self._by_id: dict[UUID, list[Attempt]] = {}
        self._early: dict[UUID, list[Told]] = {}
        self._buffer: Buffer | None = None
        self._statistics: Any = None
        self._root = Path()
        self._disk_steps_to_die = 0
        """Set while nobody lives, for the next."""
        self._ready = self._dropped = self._leaving = False
        self._ended_well: set[str] = set()
        self._echo: Callable[[], None] = lambda: None
        self._untold: list[Attempt] = []
        """Of which nothing was told when a flush was True."""
        self._since = 0
        """How many attempts there were when it flushed last."""
        self._flushed = 0
        """When that was over, in ms of the server's clock."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """What a run with Producers needs."""
        with lockstep.lockstep(), tempfile.TemporaryDirectory(dir=FAST if Path(FAST).is_dir() else None) as folder:
            self._root = Path(folder) / "spool"
            logger, handler = logging.getLogger("canvasbus.producer"), _Handler(self)
            before = logger.propagate, logger.level
            logger.addHandler(handler)
            logger.propagate = False
            logger.setLevel(logging.INFO)
            try:
                yield
            finally:
                logger.removeHandler(handler)
                logger.propagate = before[0]
                logger.setLevel(before[1])

    # --- one life ------------------------------------------------------------------------------------------------

    async def live(self, site: Site) -> None:
        """From the start of a program to its end."""
        async with trio.open_nursery() as nursery:
            life = self.life = Life(site, nursery, self.dice, self.how.nervous)
            life.before_end, life.after_end = self._before_end, self._after_end
            life.disk_steps = self._disk_steps_to_die
            self._disk_steps_to_die = 0
            memory._named[site.name] = SimServer(self.world.network, site)  # type: ignore[assignment]
            try:
                program = Thread(partial(self._program, life), "program", life=life)
                program.start()
                life.turn()
                while not program.ended or any(thread.is_alive() for thread in life.threads if self._dropped):
                    await life.changed.wait()
                life.end()  # threads that are daemons end with their process
                nursery.cancel_scope.cancel()
            finally:
                memory.forget(site.name)

    def _program(self, life: Life) -> None:
        how, dice = self.how, self.dice
        self._ready = self._dropped = self._leaving = False
        self._echo = lambda: None  # that of the life before would publish on its Producer
        producer = Producer(
            f"memory://{life.site.name}",
            source="program",
            namespace="sim",
            partitions=self.plan.partitions,
            spool=self._root if how.spool else None,
            spool_bytes=how.spool_bytes,
            buffer_bytes=how.buffer_bytes,
            when_full=how.when_full,
            max_block=how.max_block,
            on_delivery=partial(self._tell, life),
            dedupe=how.dedupe,
            flush_timeout=5.0,
        )
        handle = weakref.ref(producer)

        def aside(thread: int) -> None:
            found = handle()
            if found is not None and self.todo and self.todo[-1].how == "one":
                self._publish_one(life, found, thread, self.todo.pop())

        life.on_signal, life.signals = partial(aside, SIGNALS), how.signals
        self._echo = partial(aside, CALLBACKS)
        self._buffer = producer._buffer
        self._statistics = producer.statistics
        others = [
            Thread(partial(self._publish, life, producer, number), f"{number}") for number in range(1, how.threads)
        ]
        for other in others:
            other.start()
        self._again(life, producer)
        self._ready = True
        self._publish(life, producer, 0)
        while not life.site.leave.is_set():
            self._flush(life, producer)
            ask(partial(_until, life.site.leave, dice.uniform(0.2, 3.0)))
        sender = producer._sender
        assert sender is not None
        self._leaving = True
        way = "close" if self.world.over else dice.choice(["close", "close soon", "let go", "end"])
        self.world.note(life.site.name, f"leaves: {way}")
        self.seen[f"producer: {way}"] += 1
        if way == "let go":
            self._dropped = True
            self._statistics = None
            for other in others:
                other.join()
        elif way == "end":
            sender.at_exit(dice.choice([0.0, 0.2, 5.0]))
        else:
            producer.close(dice.choice([0.0, 0.01, 0.3]) if way == "close soon" else None)
            now = producer.statistics()
            if self.world.over and (now.waiting_events or now.spool_events or now.spool_errors):
                self._wrong(life, f"closed a Producer that is not done: {now}")

    def _publish(self, life: Life, producer: Producer, thread: int) -> None:
        while self.todo and not life.site.leave.is_set():
            pause = self.todo[0].at - clock.monotonic()
            if pause > 0:
                ask(partial(_until, life.site.leave, pause))
                continue
            publish = self.todo.pop(0)
            self._publish_one(life, producer, thread, publish)
            if thread == 0 and self.dice.random() < self.how.flushes:
                self._flush(life, producer)

    def _publish_one(self, life: Life, producer: Producer, thread: int, publish: Publish) -> None:
        world, history = self.world, self.world.history
        numbers, how = publish.numbers, publish.how
        n, name = numbers[0], life.site.name
        began = clock.time_ns() // 1_000_000
        drops = self.how.spool_bytes < SPOOL_BYTES and self.how.when_full is None
        kept = self.how.spool and not drops and thread != SIGNALS  # these may have to wait until the lock is free
        attempts = [Attempt(n, name, thread, kept, how, began) for n in numbers]
        self.attempts += attempts
        if thread == 0:
            life.ctrl_c = self.how.ctrl_c
        events = [Placed(n=n, weight=float("nan") if how == "bad" else 0.0) for n in numbers]
        said = "accepted"
        try:
            if how == "many":
                ids: list[UUID | None] = list(producer.publish_many(events))
            elif how == "keyed":
                ids = [producer.publish(events[0], dedupe_key=f"event {n}", on_delivery=self._own(life, attempts[0]))]
            elif how == "delayed":
                history.due[n] = clock.time() * 1000 + n % 5 * 1000
                ids = [producer.publish(events[0], delay=n % 5)]
            elif how == "stale":
                history.stale[n] = clock.time() + STALE_SECONDS
                ids = [producer.publish(events[0], expires_in=STALE_SECONDS)]
            elif n % 3:
                ids = [producer.publish(events[0])]
            else:
                ids = [producer.publish(events[0], on_delivery=self._own(life, attempts[0]))]
            if life.dead:  # while its threads are unwound nobody hears what `publish` returns
                raise Killed(name)
            for attempt, event_id in zip(attempts, ids, strict=True):
                assert event_id is not None
                attempt.returned = True
                self._by_id.setdefault(event_id, []).append(attempt)
                attempt.told += self._early.pop(event_id, [])
        except (EncodeError, BufferFull) as error:
            said = type(error).__name__
            if how != "many":  # of these, those before it are queued
                attempts[0].raised, attempts[0].leaving = said, self._leaving
        except KeyboardInterrupt:  # it goes on, and does not know
            said = "Ctrl-C"
            self.seen["producer: Ctrl-C"] += 1
        finally:
            life.ctrl_c = 0.0
            self.left -= 1
            if thread >= SIGNALS:
                self.seen[f"producer: published by {'a signal' if thread == SIGNALS else 'on_delivery'}"] += 1
            life.soon(lambda: world.note(name, f"{how} {numbers[0]}-{numbers[-1]} of thread {thread}: {said}"))

    def _again(self, life: Life, producer: Producer) -> None:
        """What a program does that knows what it had published, and not what became of it."""
        fates: dict[int, set[str]] = {}
        for attempt in self.attempts:
            if attempt.how == "keyed":
                fates.setdefault(attempt.n, set()).add(attempt.fate)
        for n, known in fates.items():
            if "accepted" not in known:
                self.left += 1
                self._publish_one(life, producer, 0, Publish(0, (n,), "keyed"))

    def _flush(self, life: Life, producer: Producer) -> None:
        mine = [one for one in self.attempts if one.returned and (one.kept or one.life == life.site.name)]
        since, self._since = self.attempts[self._since :], len(self.attempts)
        since = [one for one in since if one.returned]  # on_delivery may be about to publish
        began, patience = clock.monotonic(), self.dice.choice([0.0, 0.05, 1.0, 5.0])
        done = producer.flush(patience)
        before, self._flushed = self._flushed, clock.time_ns() // 1_000_000
        if not done:
            late = [one.n for one in mine if not one.told and one.how != "keyed"]
            if late and patience > PROMPT_SECONDS and self._calm(life, began):
                self._wrong(life, f"a flush of {patience} s was not enough for {late}")
            return
        self.seen["producer: flushed"] += 1
        for one in mine:
            if not one.told and one.how != "keyed":
                self._untold.append(one)
        for one in since if self.how.threads == 1 else ():
            if one.told and one.told[-1].at <= before:  # by a callback during the flush before, which has told
                continue
            if one.life == life.site.name and one.fate != "accepted" and one.how != "keyed":
                self._wrong(life, f"a flush is True, and {one.n} is {one.fate}")

    # --- what it is told -----------------------------------------------------------------------------------------

    def _tell(self, life: Life, event_id: UUID, error: CanvasbusError | None) -> None:
        if life.dead:
            return
        told = Told(_fate(error), str(error), life.site.name, clock.time_ns() // 1_000_000, self._leaving)
        attempts = [one for one in self._by_id.get(event_id, ()) if self.how.spool or one.life == life.site.name]
        if not attempts:
            self._early.setdefault(event_id, []).append(told)
        else:  # under one key: the first of those of which it was not told
            of = next((one for one in attempts if not one.told), attempts[-1])
            of.told.append(told)
            self._check_prompt(life, of, told)
        self.seen[f"producer: told {told.fate}"] += 1
        if self.how.echoes and self.dice.random() < self.how.echoes:
            self._echo()

    def _check_prompt(self, life: Life, attempt: Attempt, told: Told) -> None:
        """What nothing is in the way of is told soon."""
        since = clock.monotonic() - (told.at - attempt.began) / 1000
        if (
            attempt.life == life.site.name
            and told.at - attempt.began > PROMPT_SECONDS * 1000
            and self._calm(life, since)
        ):
            self._wrong(life, f"{attempt.n} was told of {told.at - attempt.began} ms after it was published")

    def _calm(self, life: Life, since: float) -> bool:
        """Whether nothing was in the way of its packets from a moment on."""
        site, network = life.site, self.world.network
        ill = network.away or network.mood or since < max(network.calm_from, site.calm_from) + PROMPT_SECONDS
        ill = ill or any(time > since - PROMPT_SECONDS for time in site.troubles)
        return not ill and not self.plan.happens("clock") and not self.plan.capped

    def _own(self, life: Life, attempt: Attempt) -> Any:
        def tell(_: UUID, error: CanvasbusError | None) -> None:
            if not life.dead:
                attempt.own.append(_fate(error))

        return tell

    def logged(self, record: logging.LogRecord) -> None:
        """The product said something; nothing in it may be unforeseen."""
        life = lockstep.current().life
        if life.dead:  # while its threads are unwound nobody hears what they say
            return
        text = record.getMessage().replace(str(self._root), "SPOOL")
        if record.levelno >= logging.ERROR:
            import traceback

            why = "".join(traceback.format_exception(record.exc_info[1])) if record.exc_info else ""
            self._wrong(life, f"{text} {why}")
        else:
            life.soon(lambda: self.world.note(life.site.name, f"says: {text}"))

    def _wrong(self, life: Life, what: str) -> None:
        life.soon(lambda: self.world.wrong(f"{life.site.name}: {what}"))

    # --- what happens to it --------------------------------------------------------------------------------------

    async def happen(self, what: Happening) -> None:
        """A fault of its own."""
        site = self.world.sites["producer 0"]
        if what.kind == "kill producer":
            if what.how == "disk" and self.life is not None:
                self.seen["producer: killed at the disk"] += 1
                if site.dead:
                    self._disk_steps_to_die = what.who
                else:
                    self.life.disk_steps = what.who
            elif what.how == "now":
                site.kill()
            elif what.how == "late":
                self.seen["producer: killed with a late packet"] += 1
                site.next_fate = "late and killed"
            else:
                site.falls_at = what.who, what.how
        elif what.kind == "producer leaves":
            site.leave.set()
        elif what.kind in ("producer late", "producer lost"):
            site.next_fate = "late" if what.kind == "producer late" else "lose"
        elif what.kind == "pause producer":
            site.pause()
            await trio.sleep(what.seconds)
            site.go_on()
            site.calm_from = trio.current_time()

    def heal(self) -> None:
        """Nothing more happens to it."""
        self._disk_steps_to_die = 0
        if self.life is not None:
            self.life.disk_steps = 0

    def _before_end(self) -> None:
        """Nothing that a dead process still does may change its spool: what was there is kept aside."""
        assert self.life is not None
        if all(thread.ended for thread in self.life.threads):
            self._ended_well.add(self.life.site.name)
        if self._root.is_dir():
            shutil.copytree(self._root, self._root.with_name("kept"))

    def _after_end(self) -> None:
        self._buffer, self._statistics = None, None
        kept = self._root.with_name("kept")
        if kept.is_dir():
            shutil.rmtree(self._root)
            kept.rename(self._root)

    def settled(self) -> bool:
        """Nothing is left to be published or sent."""
        buffer, statistics = self._buffer, self._statistics
        if self.left or not self._ready or buffer is None or statistics is None or not getattr(buffer, "_looked", True):
            return False
        return not statistics().waiting_events

    def finish(self) -> None:
        """What must be so when all have left."""
        history = self.world.history
        if self._root.is_dir() and (files := sorted(self._root.iterdir())):
            left = [path.name for path in files if path.suffix != ".damaged"]
            if left:
                history.wrong.append(f"all is sent, and the spool still holds {left}")
        for (
            one
        ) in self._untold:  # a drop counts for the flush in which it happens, and is told when the sender has time
            if one.fate != "refused" or not self.how.drops:
                history.wrong.append(f"a flush is True, and nothing is told of {one.n} of {one.life}")
        history.attempts, history.ended_well = self.attempts, self._ended_well
        fates: dict[int, list[str]] = {}
        for attempt in self.attempts:
            fates.setdefault(attempt.n, []).append(attempt.fate)
        for n, known in fates.items():
            alike = known[0] if len({*known}) == 1 else "unknown"
            history.fate[n] = "accepted" if "accepted" in known else alike


async def _until(event: trio.Event, seconds: float) -> None:
    with trio.move_on_after(seconds):
        await event.wait()


def _fate(error: CanvasbusError | None) -> str:
    if error is None:
        return "accepted"
    return "unknown" if isinstance(error, Unavailable) and error.ambiguous else "refused"


class _Handler(logging.Handler):
    def __init__(self, programs: Programs) -> None:
        super().__init__()
        self._programs = programs

    def emit(self, record: logging.LogRecord) -> None:
        self._programs.logged(record)
