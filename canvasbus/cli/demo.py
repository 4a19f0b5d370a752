"""canvasbus demo: a model on real images drifts, is noticed, is retrained and recovers, in about a minute.

    images.submitted ──► tagger ──► observations.recorded ──► drift ──► drift.detected ──► alerts ──► incident.opened
    labels.recorded ──► drift ──► metric.threshold_breached ──► retrain ──► retrain.started ──► trainer
    retrain.succeeded ──► retrain ──► model.promoted ──► tagger

This side plays the world and the people who label: it publishes images and, later, labels, and looks on. The workers
are those of `canvasbus-worker drift alerts retrain trainer tagger`, and know nothing but the events. On memory:// they run in
this process; with a server each one is a process of its own.

In the middle of one window the drift worker is killed, with a batch in its hands. Another one, the `twin`, is given the
same events and lives: at the end what both said must be the same, down to the event ids.

A window stands for an hour of a studio's day, and whatever the workers do about it takes seconds: so the next window
comes when the bus is at rest and, at the earliest, after the pace of the show. That makes equal seeds tell equal
stories, in one process or five, however slow the machine is.
"""

import hashlib
import importlib.util
import io
import itertools
import os
import signal
import tempfile
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from canvasbus.cli.cast import MORTAL, Cast, Stage, gather, logging_to
from canvasbus.cli.output import Output
from canvasbus.errors import CanvasbusError, ConfigError
from canvasbus.ids import id_order

if TYPE_CHECKING:
    from canvasbus import Event
    from canvasbus.bus import EventBus
    from canvasbus.cli.board import Show
    from canvasbus.cli.onlooker import Seen
    from canvasbus.cli.story import Story
    from canvasbus.cli.twin import Twin
    from canvasbus.cli.world import Images, Sample, Window, World
    from canvasbus.events import ArtifactRef
    from canvasbus.transport.blocking import BlockingLink
    from canvasbus.transport.resp import Operation
    from canvasbus.transport.server import Server

NEEDED = ("numpy", "scipy", "sklearn", "rich", "fakeredis")
MODEL = "StyleGAN-Canvas-v3"
SECONDS_A_WINDOW = 0.6
STUCK = 60.0
"""Seconds without rest after which the demo gives up."""
SETTINGS = """
[workers.retrain]
debounce_seconds = 0
cooldown_seconds = 0
daily_runs = 1000
min_new_labels = 70
"""
"""The workers' own, whatever stands in the user's file. A story that takes an hour for a window counts labels, not seconds:
the same images give the same model."""
LOOK = 0.01
"""Seconds between two looks at the bus."""
KILLED_IN = 16
"""The window: the one with which drift.detected comes, mostly."""
IN_HAND = 2.0
"""Seconds within which a worker that reads is given what was published; one that has been stopped may not be reading."""


def run(*, url: str | None = None, seed: int = 1, speed: float = 1.0, json: bool = False) -> int:
    """Play the story: on memory:// in this process, on a server's URL with worker processes.

    0; 1 when the corrupted images were not answered with a new version, a handler gave an event up, or the killed
    worker's death left a trace; 130 when interrupted. Raises ConfigError for missing extras, Unavailable for a server that is away, and CanvasbusError when
    the story cannot go on, for example because a worker process died.
    """
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")  # read when numpy is imported; BLAS threads would fight the workers for cores
    check(url)
    import trio

    from canvasbus.transport import memory
    from canvasbus.transport.connect import open_server

    namespace = f"demo-{uuid.uuid4().hex[:8]}"
    own = url in (None, "memory://")
    url = f"memory://{namespace}" if own or url is None else url
    server = open_server(url)
    with (
        tempfile.TemporaryDirectory(prefix="canvasbus-demo-") as folder,
        _environment("ARTIFACT_ROOT", folder),
        _environment("CANVASBUS_CONFIG", f"{folder}/canvasbus.toml"),
    ):
        Path(folder, "canvasbus.toml").write_text(SETTINGS)
        stage = Stage(url, server.name if server.blocks else "memory://", server.blocks, namespace, Path(folder))
        try:
            return trio.run(_play, stage, seed, speed, Output(json=json))
        except BaseExceptionGroup as group:
            raise _cause(group) from None
        finally:
            with suppress(CanvasbusError):
                _on(open_server(url), lambda link: link.run(_forget(namespace)))
            if own:
                memory.forget(namespace)


def check(url: str | None) -> None:
    """Raise ConfigError or Unavailable at once, before anything is started."""
    _check_extras()
    from canvasbus.transport.connect import open_server

    server = open_server(url or "memory://")
    if server.blocks:
        _on(server, lambda link: link.call("PING"))


def _check_extras() -> None:
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join("scikit-learn" if name == "sklearn" else name for name in missing)
        raise ConfigError(f"demo needs {names}: pip install 'canvasbus[demo]'")


def _on(server: "Server", do: "Callable[[BlockingLink], object]") -> None:
    from canvasbus.transport.blocking import BlockingLink

    link = BlockingLink(server)
    try:
        do(link)
    finally:
        link.close()


def _forget(namespace: str) -> "Operation[None]":
    """Remove every key of the namespace."""
    from canvasbus.operate.topics import scan
    from canvasbus.transport.resp import command

    keys = yield from scan(b"{" + namespace.encode() + b":*")
    if keys:
        yield command("UNLINK", *keys)


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _cause(error: BaseException) -> BaseException:
    """What a group is about: the first error that is no cancellation."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _play(stage: Stage, seed: int, speed: float, out: Output) -> int:
    import trio

    from canvasbus.bus import EventBus
    from canvasbus.cli.board import show_for
    from canvasbus.cli.story import Story
    from canvasbus.cli.twin import twin_of
    from canvasbus.cli.world import World

    story = Story()
    seconds: float | None = None
    with (
        show_for(out, story, where=stage.name, processes=stage.processes, seed=seed) as show,
        (stage.folder / "workers.log").open("a") as log,
        logging_to(log),
    ):
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM, signal.SIGHUP) as signals:
            async with trio.open_nursery() as nursery:

                async def leave() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel()

                async def draw() -> None:
                    while True:
                        show.tick()
                        await trio.sleep(0.1)

                nursery.start_soon(leave)
                nursery.start_soon(draw)
                bus = EventBus(stage.url, source="demo", namespace=stage.namespace, patience=10.0, grace=2.0)
                async with bus, twin_of(STUCK) as twin, gather(bus, stage) as cast:
                    director = Director(bus, stage, World(seed), story, show, cast, twin)
                    seconds = await director.play(SECONDS_A_WINDOW / speed)
                nursery.cancel_scope.cancel()
        if seconds is not None:
            show.end(seconds)
    if seconds is None:
        out.note("canvasbus: demo interrupted")
        return 130
    return 0 if story.is_good else 1


class Director:
    """Publishes what happens in the world, and reads everything that is said on the bus."""

    def __init__(
        self,
        bus: "EventBus",
        stage: Stage,
        world: "World",
        story: "Story",
        show: "Show",
        cast: Cast,
        twin: "Twin",
    ) -> None:
        from canvasbus.cli.onlooker import Onlooker
        from canvasbus.contract.registry import registry

        self._bus = bus
        self._world = world
        self._story = story
        self._show = show
        self._cast = cast
        self._twin = twin
        self._folder = stage.folder / "world"
        self._onlooker = Onlooker(stage.namespace)
        self._heard: list[Seen] = []
        """What the twin does not know yet."""
        self._began_ms: int | None = None
        submitted = registry.latest("images.submitted")
        assert submitted is not None, "the tagger declares it"
        self._submitted: Callable[..., Event] = submitted.cls
        # What workers remember they remember by the model's name: a second story in one process needs another one.
        number = next(_stories)
        self._model = MODEL if number == 1 else f"{MODEL}.{number}"

    async def play(self, pace: float) -> float:
        """All windows, `pace` seconds apart at least. Returns how long it took in seconds."""
        import trio

        from canvasbus.cli.world import LABELS_LATE, WINDOWS
        from canvasbus.events import RetrainRequested

        await self._until(lambda: self._onlooker.joined(self._cast.reads))
        began = trio.current_time()
        await self._bus.publish(self._labels("first/train", "train", self._world.first_training()))
        await self._bus.publish(self._labels("first/validation", "validation", self._world.first_validation()))
        await self._rest()
        await self._bus.publish(RetrainRequested(model_name=self._model, reason="first model", requested_by="demo"))
        await self._rest()
        late: deque[Window] = deque()
        for number in range(WINDOWS + LABELS_LATE):
            due = trio.current_time() + pace
            if len(late) == LABELS_LATE or number >= WINDOWS:
                await self._label(late.popleft())
                await self._rest()
            if number < WINDOWS:
                late.append(self._world.window(number))
                await self._submit(late[-1], "train")
                await self._rest()  # two batches at once would be counted in any order
                if number == KILLED_IN:
                    await self._kill(late[-1])
                else:
                    await self._submit(late[-1], "test")
                    await self._rest()
                self._show.window(number)
            while trio.current_time() < due:
                self._cast.check()
                await trio.sleep(min(0.05, max(0.0, due - trio.current_time())))
        self._story.compared(self._twin.compare())
        return trio.current_time() - began

    async def _submit(self, window: "Window", half: str) -> None:
        """Half a window: it is full with the second one."""
        await self._bus.publish(
            self._submitted(
                model_name=self._model,
                batch_id=f"w{window.number:03d}/{half}",
                item_ids=_item_ids(window, half),
                images=self._store(getattr(window, half).images),
            )
        )

    async def _kill(self, window: "Window") -> None:
        """Half of the window is counted. The worker is given the batch that fills it, and dies with that in its hands."""
        import trio

        from canvasbus.cli.onlooker import asked

        self._cast.doom()
        await self._submit(window, "test")
        in_hand = 0
        with trio.move_on_after(IN_HAND):
            while not in_hand:
                await trio.sleep(LOOK)
                in_hand = await asked(self._bus.link, lambda: self._onlooker.in_hand(MORTAL))
        with trio.move_on_after(STUCK) as dying:
            await self._cast.kill()
        if dying.cancelled_caught:
            raise CanvasbusError(f"demo: the {MORTAL} worker that was to be killed has done nothing for {STUCK:g} s")
        died = trio.current_time()
        self._show.note(self._story.killed(window.number, in_hand))
        await self._rest()  # the dead one's batch counts as pending until somebody else is done with it
        self._show.note(self._story.taken_over(trio.current_time() - died, self._twin.compare()))

    async def _label(self, window: "Window") -> None:
        """People have looked at both halves. The half that is judged comes without images: nobody can learn from it."""
        name = f"w{window.number:03d}"
        await self._bus.publish(
            self._labels(f"{name}/train", "train", window.train, _item_ids(window, "train")),
        )
        await self._rest()
        await self._bus.publish(self._labels(f"{name}/test", "test", window.test, _item_ids(window, "test")))

    def _labels(self, batch_id: str, split: Any, sample: "Sample", item_ids: Sequence[str] = ()) -> "Event":
        from canvasbus.events import LabelsRecorded

        return LabelsRecorded(
            model_name=self._model,
            batch_id=batch_id,
            split=split,
            item_ids=tuple(item_ids or (f"{batch_id}/{at}" for at in range(len(sample.labels)))),
            labels=tuple(sample.labels.tolist()),
            groups=sample.originals,
            images=None if split == "test" else self._store(sample.images),
        )

    def _store(self, images: "Images") -> "ArtifactRef":
        """Images as any client would hand them over: an .npz in a folder that the workers see, and its digest."""
        import numpy as np

        from canvasbus.events import ArtifactRef

        buffer = io.BytesIO()
        np.savez(buffer, images=images)
        data = buffer.getvalue()
        digest = hashlib.sha256(data).hexdigest()
        self._folder.mkdir(exist_ok=True)
        path = self._folder / f"{digest}.npz"
        path.write_bytes(data)
        return ArtifactRef(uri=path.as_uri(), sha256=digest, size=len(data), media_type="application/x-npz")

    # --- looking on ----------------------------------------------------------------------------------------------

    async def _rest(self) -> None:
        """Return when all that was to be done has been done, by the twin, too."""
        await self._until(self._at_rest)
        heard, self._heard = self._heard, []
        await self._twin.follow(heard)

    async def _until(self, so: "Callable[[], Operation[bool]]") -> None:
        import trio

        deadline = trio.current_time() + STUCK
        from canvasbus.cli.onlooker import asked

        while not await asked(self._bus.link, so):
            self._cast.check()
            if trio.current_time() > deadline:
                raise CanvasbusError(f"demo: the workers have not come to rest for {STUCK:g} s at {self._story!r}")
            await trio.sleep(LOOK)

    def _at_rest(self) -> "Operation[bool]":
        """Every group has handled all that this side has read, and nothing came while that was found out: so at one
        moment in between, all was done."""
        yield from self._take()
        done = yield from self._onlooker.handled()
        return (yield from self._take()) == 0 and done

    def _take(self) -> "Operation[int]":
        """Read what is new. Returns how many there were."""
        seen = yield from self._onlooker.take()
        for one in seen:
            at = id_order(one.entry.entry_id)[0]
            self._began_ms = at if self._began_ms is None else self._began_ms
            note = self._story.take(one.event, one.envelope, (at - self._began_ms) / 1000)
            self._show.event(one.entry, note)
        self._heard += seen
        return len(seen)


_stories = itertools.count(1)


def _item_ids(window: "Window", half: str) -> tuple[str, ...]:
    return tuple(f"w{window.number:03d}/{half}/{at:02d}" for at in range(len(getattr(window, half).labels)))
