"""What the drift worker listens to.

Any number of processes share a model. What a batch adds to its window is counted where the batch is delivered, and put
into the window's parts; the window itself, a few numbers, says which batches it has. Whoever commits the batch that fills
it closes it, in the same step. Nothing is held in a process but caches: a worker that is killed costs nothing, and what
is delivered again finds itself in the window already, or is counted into the one that it would have been in.

Sequential detectors are advanced where labels are judged, under the book of the model: in one order, once.
"""

from collections import OrderedDict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from canvasbus import Event
from canvasbus.events import LabelsRecorded, ObservationsRecorded, ReferenceRegistered
from canvasbus.worker import Cancel, Context, Later, Parts, Reject, RetryLater, State, Worker, section
from canvasbus_workers.artifacts import ArtifactError
from canvasbus_workers.drift import answers, book, judging, telling
from canvasbus_workers.drift.answers import Answers
from canvasbus_workers.drift.book import Book, Closed, References, Registered, Scope, Track, Window
from canvasbus_workers.drift.edge import Samples, arrays_of
from canvasbus_workers.drift.events import WindowDue
from canvasbus_workers.drift.settings import Settings
from canvasbus_workers.monitoring import Comparison, Partial, count, judge
from canvasbus_workers.monitoring.columns import GRID
from canvasbus_workers.monitoring.monitor import digest_of
from canvasbus_workers.monitoring.reference import CONFIDENCE, Reference

worker = Worker("drift")

Array = npt.NDArray[Any]

PARTS_AT_ONCE = 64
"""Parts of a window above which they are made into one."""
KEPT_BATCHES = 512
"""Counted batches that a process remembers: those whose commit is on its way, and those that must run again."""
KEPT_ANSWERS = 50_000
"""Of one window, the last ones, 800 kB: labels of the others find nothing. A state holds a megabyte at most."""
KEPT_EARLY = 64
"""Batches of labels that may wait for their answers."""
LEAST_REPEATED = 16
"""Different rows from which equal batches under two ids are one that was sent twice: a few rows, or a hundred times the same
answer, may well come again."""
LOOKED_AT = 64
"""Rows of a batch among which so many different ones are looked for."""
ON_ITS_WAY = 0.01
"""Seconds after which a window is looked at again whose parts another process has not committed yet."""


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """A part of a window: what some rows add to it."""

    items: int
    counted: dict[str, bytes]
    """Digest of a reference → packed counts."""
    answers: bytes


class Early(msgspec.Struct, array_like=True, frozen=True):
    """Labels whose answers have not come yet."""

    items: bytes
    """Hashed ids, uint64."""
    labels: bytes
    """int64"""


@dataclass
class Resources:
    """What one process has: settings, and caches of what cannot change."""

    settings: Settings
    samples: Samples = field(default_factory=Samples)
    batches: OrderedDict[str, Batch] = field(default_factory=OrderedDict)
    answers: OrderedDict[str, Answers] = field(default_factory=OrderedDict)


@worker.lifespan
async def open_resources() -> AsyncIterator[Resources]:
    """Settings that make no sense end it before it has begun."""
    yield Resources(section("drift", Settings))


# --- references --------------------------------------------------------------------------------------------------------


@worker.on(ReferenceRegistered)
async def register(event: ReferenceRegistered, ctx: Context) -> None:
    """Another regime that the windows of a version may match."""
    state = await _references(event.model_name, event.model_version, ctx)
    try:
        one = state.value.register(event)
        ctx.resources.samples.load(one)
    except (ValueError, ArtifactError) as error:
        raise Reject(str(error)) from error


async def _references(model: str, version: str, ctx: Context) -> State[References]:
    key = Scope(model, version, "").key("references")
    return await ctx.state(key, References, ttl=ctx.resources.settings.keep_seconds)


# --- windows -----------------------------------------------------------------------------------------------------------


@worker.on(ObservationsRecorded)
async def observe(event: ObservationsRecorded, ctx: Context) -> Sequence[Event | Later | Cancel]:
    """Count a batch into its window, and close the window when that fills it."""
    try:
        arrays = arrays_of(event)
    except ArtifactError as error:
        raise Reject(str(error)) from error
    if not event.item_ids:
        return ()
    scope = Scope(event.model_name, event.model_version, event.segment)
    settings: Settings = ctx.resources.settings
    registered = (await _references(scope.model, scope.version, ctx)).value.of(scope.segment)
    references = ctx.resources.samples.load_all(registered)
    window = (await _window(scope, ctx)).value
    batch_id = event.batch_id or str(ctx.envelope.id)
    name, content = _short(batch_id), _content(arrays) or _short(batch_id)
    if name in window.seen:
        return ()
    if content in window.seen:
        return (telling.repeated(scope, batch_id, len(event.item_ids)),)
    opens = not window.items
    part = f"{name}.{content}"
    batch = ctx.resources.batches.get(part)  # a run that was overtaken by another process
    if batch is None or batch.counted.keys() != {reference.digest for reference in references}:
        batch = _count(event, arrays, references)
    _hold(ctx.resources, part, batch)
    ctx.parts(scope.key("open"), Batch, ttl=settings.keep_seconds).put(part, batch)
    window.take(batch_id, part, batch.items, event.occurred_on)
    window.seen = [*window.seen, name, content][-2 * book.KEPT_BATCHES :]
    if window.is_full(settings.window_items, settings.min_items):
        found = await _close(scope, window, registered, ctx)
        return [*found, *(() if opens else (Cancel(scope.key("due")),))]
    if len(window.parts) > PARTS_AT_ONCE:
        await _fold(scope, window, ctx)
    if not opens:
        return ()
    due = WindowDue(model_name=scope.model, model_version=scope.version, segment=scope.segment, serial=window.serial)
    return (Later(due, after=settings.window_seconds, timer=scope.key("due")),)


@worker.on(WindowDue)
async def on_due(event: WindowDue, ctx: Context) -> Sequence[Event]:
    """Close a window that does not fill; with too few rows it waits for more, and is never tested as it is."""
    scope = Scope(event.model_name, event.model_version, event.segment)
    registered = (await _references(scope.model, scope.version, ctx)).value.of(scope.segment)
    window = (await _window(scope, ctx)).value
    if window.serial != event.serial or not window.items:
        return ()
    window.due = True
    settings: Settings = ctx.resources.settings
    if not window.is_full(settings.window_items, settings.min_items):
        return ()
    return await _close(scope, window, registered, ctx)


async def _window(scope: Scope, ctx: Context) -> State[Window]:
    return await ctx.state(scope.key("window"), Window, ttl=ctx.resources.settings.keep_seconds)


def _count(event: ObservationsRecorded, arrays: Mapping[str, Array], references: Iterable[Reference]) -> Batch:
    counted = {reference.digest: count(reference, arrays).pack() for reference in references}
    return Batch(len(event.item_ids), counted, answers.pack(event.item_ids, event.predictions))


def _content(arrays: Mapping[str, Array]) -> str:
    """The same for batches of which one is the other, sent again; empty: too little is in it to tell."""
    rows = zip(*(array[:LOOKED_AT] for array in arrays.values()), strict=True)
    different = {b"".join(value.tobytes() for value in row) for row in rows}
    return digest_of(arrays) if len(different) >= LEAST_REPEATED else ""


def _hold(held: Resources, part: str, batch: Batch) -> None:
    held.batches[part] = batch
    while len(held.batches) > KEPT_BATCHES:
        held.batches.popitem(last=False)


async def _gather(scope: Scope, window: Window, ctx: Context) -> list[Batch]:
    """The window's parts, in their order. Those that this process has just counted are not on the server yet."""
    held: Resources = ctx.resources
    if all(part in held.batches for part in window.parts):
        return [held.batches[part] for part in window.parts]
    stored = await ctx.parts(scope.key("open"), Batch, ttl=held.settings.keep_seconds).items()
    found = [stored.get(part) or held.batches.get(part) for part in window.parts]
    if None in found:
        raise RetryLater(ON_ITS_WAY, "parts of the window are still on their way")
    return [batch for batch in found if batch is not None]


def _together(batches: Sequence[Batch]) -> tuple[Batch, dict[str, Partial]]:
    """Parts as one; a reference against which not all of them were counted is left out."""
    whole: dict[str, Partial] = {}
    for digest in set.intersection(*(set(batch.counted) for batch in batches)):
        whole[digest] = Partial.unpack(batches[0].counted[digest])
        for batch in batches[1:]:
            whole[digest].add(Partial.unpack(batch.counted[digest]))
    packed = {digest: whole[digest].pack() for digest in sorted(whole)}
    said = b"".join(batch.answers for batch in batches)[-KEPT_ANSWERS * answers.ROW.itemsize :]
    return Batch(sum(batch.items for batch in batches), packed, said), whole


async def _fold(scope: Scope, window: Window, ctx: Context) -> None:
    """Make many parts one."""
    batch, _ = _together(await _gather(scope, window, ctx))
    part = f"fold.{window.serial}.{window.batches}.{_short(''.join(window.parts))}"
    parts = ctx.parts(scope.key("open"), Batch, ttl=ctx.resources.settings.keep_seconds)
    parts.clear()
    parts.put(part, batch)
    _hold(ctx.resources, part, batch)
    window.parts = [part]


async def _close(scope: Scope, window: Window, registered: Sequence[Registered], ctx: Context) -> list[Event]:
    """The window's verdict, and what follows from it."""
    settings: Settings = ctx.resources.settings
    references = ctx.resources.samples.load_all(registered)
    batch, partials = _together(await _gather(scope, window, ctx))
    whole = (await _book(scope.model, ctx)).value
    track = (await _track(scope.model, scope.segment, ctx)).value
    track.follow(scope.version)
    verdict, change = judge(whole.numbers, batch.items, references, partials, track.course, settings)
    breach = whole.breaches.get(scope.segment)
    found: list[Event] = [telling.evaluated(scope, window, verdict, _confidence(verdict.short, partials))]
    found += telling.broken(scope, window, track, verdict.violations)
    found += telling.drift_changed(scope, window, verdict, track, change, breach is not None and breach.is_open)
    match = verdict.match
    closed = Closed(
        number=verdict.number,
        window_id=window.window_id,
        version=scope.version,
        segment=scope.segment,
        reference_id=match.reference.reference_id if match else "",
        regime=match.reference.regime if match else "",
        flagged=verdict.flagged,
        answers=blake2b(batch.answers, digest_size=8).hexdigest() if batch.answers else "",
    )
    if batch.answers:
        kept = await _answers(scope.model, closed.number, ctx)
        kept.value = batch.answers
    whole.closed(closed, registered)
    window.begin()
    ctx.parts(scope.key("open"), Batch).clear()
    if whole.early:
        found += await _join_early(scope.model, whole, ctx)
    return found


def _confidence(short: Comparison | None, partials: dict[str, Partial]) -> float:
    """Mean top probability of a window; 0.0: unknown."""
    if short is None:
        return 0.0
    reference = short.reference
    at = next((at for at, column in enumerate(reference.columns) if column.name == CONFIDENCE), None)
    if at is None:
        return 0.0
    column, partial = reference.columns[at], partials[reference.digest]
    there = int(partial.seen[at] - partial.missing[at])
    return column.mean + column.sd * float(partial.sums[at]) / GRID / there if there else 0.0


async def _book(model: str, ctx: Context) -> State[Book]:
    return await ctx.state(Scope(model, "", "").key("book"), Book, ttl=ctx.resources.settings.keep_seconds)


async def _track(model: str, segment: str, ctx: Context) -> State[Track]:
    return await ctx.state(Scope(model, "", segment).key("track"), Track, ttl=ctx.resources.settings.keep_seconds)


async def _answers(model: str, number: int, ctx: Context) -> State[bytes]:
    key = Scope(model, str(number), "").key("answers")
    return await ctx.state(key, bytes, ttl=ctx.resources.settings.label_seconds)


def _short(text: str) -> str:
    return blake2b(text.encode(), digest_size=9).hexdigest()


# --- labels ------------------------------------------------------------------------------------------------------------


@worker.on(LabelsRecorded)
async def label(event: LabelsRecorded, ctx: Context) -> Sequence[Event]:
    """Judge answers by labels. Only the test split: what may be learnt from says nothing about quality."""
    if event.split != "test" or not event.item_ids:
        return ()
    if len(event.labels) != len(event.item_ids):
        raise Reject(f"labels {event.batch_id}: {len(event.labels)} labels for {len(event.item_ids)} items")
    if not -(2**63) <= min(event.labels) <= max(event.labels) < 2**63:
        raise Reject(f"labels {event.batch_id}: a label is beyond 64 bits")
    whole = (await _book(event.model_name, ctx)).value
    name = _short(event.batch_id or str(ctx.envelope.id))
    if name in whole.labelled:
        return ()
    whole.labelled = [*whole.labelled, name][-book.KEPT_WINDOWS :]
    known = dict(zip(event.item_ids, event.labels, strict=True))  # an answer has one label: the last one
    items, truth = answers.hashed(known), np.array(list(known.values()), np.int64)
    found, open_ = await _join(event.model_name, whole, items, truth, ctx)
    if open_.any():
        early = Early(items[open_].tobytes(), truth[open_].tobytes())
        parts = _early(event.model_name, ctx)
        parts.put(name, early)
        whole.early.append(name)
        while len(whole.early) > KEPT_EARLY:
            parts.remove(whole.early.pop(0))
            ctx.log.info("labels dropped whose answers never came", model_name=event.model_name)
    return found


def _early(model: str, ctx: Context) -> Parts[Early]:
    return ctx.parts(Scope(model, "", "").key("early"), Early, ttl=ctx.resources.settings.label_seconds)


async def _join_early(model: str, whole: Book, ctx: Context) -> list[Event]:
    """Labels that came before their answers: those of the windows that are closed by now."""
    parts = _early(model, ctx)
    stored = await parts.items()
    found: list[Event] = []
    for name in list(whole.early):
        early = stored.get(name)
        if early is None:  # on its way, or forgotten: it stays listed until newer ones push it out
            continue
        items, truth = np.frombuffer(early.items, "<u8"), np.frombuffer(early.labels, np.int64)
        events, open_ = await _join(model, whole, items, truth, ctx)
        found += events
        if open_.all():
            continue
        if open_.any():
            parts.put(name, Early(items[open_].tobytes(), truth[open_].tobytes()))
        else:
            parts.remove(name)
            whole.early.remove(name)
    return found


async def _join(model: str, whole: Book, items: Array, truth: Array, ctx: Context) -> tuple[list[Event], Array]:
    """Look the items up in the closed windows, newest first. Returns what follows, and which of them are in none."""
    open_ = np.ones(len(items), bool)
    hits: list[tuple[Closed, list[bool]]] = []
    for closed in reversed(whole.windows):
        if not closed.answers:
            continue
        here, said = (await _known(model, closed, ctx)).find(items[open_])
        if here.any():
            places = np.flatnonzero(open_)[here]
            hits.append((closed, (said != truth[places]).tolist()))
            open_[places] = False
            if not open_.any():
                break
    found: list[Event] = []
    for closed, wrong in reversed(hits):  # in the order of the windows
        found += await _judge(model, whole, closed, wrong, ctx)
    return found, open_


async def _known(model: str, closed: Closed, ctx: Context) -> Answers:
    cache: OrderedDict[str, Answers] = ctx.resources.answers
    key = f"{closed.number}/{closed.answers}/{model}"
    if key not in cache:
        cache[key] = Answers((await _answers(model, closed.number, ctx)).value)
        if len(cache) > 2 * book.KEPT_WINDOWS:
            cache.popitem(last=False)
    return cache[key]


async def _judge(model: str, whole: Book, closed: Closed, wrong: Sequence[bool], ctx: Context) -> list[Event]:
    settings: Settings = ctx.resources.settings
    before = whole.breaches.get(closed.segment)
    was_breached = before is not None and before.is_open
    found = list(judging.labelled(model, whole, closed, wrong, settings, settings.label_items))
    now = whole.breaches.get(closed.segment)
    if now is None or not now.is_open or was_breached:
        return found
    track = (await _track(model, closed.segment, ctx)).value
    newest = whole.newest(closed.segment)
    if track.course.episode.is_open and not track.critical and track.told is not None and newest is not None:
        track.critical = True
        found.append(telling.escalated(track.told, newest))
    return found
