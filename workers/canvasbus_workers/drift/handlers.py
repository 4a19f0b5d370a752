"""What the drift worker listens to.

Any number of processes share a model. What a batch adds to its window is counted where the batch is delivered, and put
into the window's parts; the window itself, a few numbers, says which batches it has. Whoever commits the batch that fills
it closes it, in the same step. Nothing is held in a process but caches: a worker that is killed costs nothing, and what
is delivered again finds itself in the window already, or is counted into the one that it would have been in.

Sequential detectors are advanced where labels are judged, under the ledger of the segment: in one order, once.
"""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import Any

import numpy.typing as npt

from canvasbus import Event
from canvasbus.events import LabelsRecorded, ObservationsRecorded, ReferenceRegistered
from canvasbus.worker import Cancel, Context, Later, Reject, RetryLater, Worker, section
from canvasbus_workers.artifacts import ArtifactError
from canvasbus_workers.drift import answers, labels, seen, states, telling
from canvasbus_workers.drift.book import Closed, Labelling, Registered, Scope, Window
from canvasbus_workers.drift.edge import arrays_of
from canvasbus_workers.drift.events import WindowDue
from canvasbus_workers.drift.settings import Settings
from canvasbus_workers.drift.states import Batch, Resources
from canvasbus_workers.monitoring import Comparison, Partial, count, judge
from canvasbus_workers.monitoring.columns import GRID
from canvasbus_workers.monitoring.monitor import digest_of
from canvasbus_workers.monitoring.reference import CONFIDENCE, Reference

worker = Worker("drift")

Array = npt.NDArray[Any]

PARTS_AT_ONCE = 64
"""Parts of a window above which they are made into one."""
KEPT_ANSWERS = 50_000
"""Of one window, the last ones, 800 kB: labels of the others find nothing. A state holds a megabyte at most."""
LEAST_REPEATED = 16
"""Different rows from which equal batches under two ids are one that was sent twice: a few rows, or a hundred times the same
answer, may well come again."""
LOOKED_AT = 64
"""Rows of a batch among which so many different ones are looked for."""
ON_ITS_WAY = 0.01
"""Seconds after which a window is looked at again whose parts another process has not committed yet."""


@worker.lifespan
async def open_resources() -> AsyncIterator[Resources]:
    """Settings that make no sense end it before it has begun."""
    yield Resources(section("drift", Settings))


# --- references --------------------------------------------------------------------------------------------------------


@worker.on(ReferenceRegistered)
async def register(event: ReferenceRegistered, ctx: Context) -> None:
    """Another regime that the windows of a version may match."""
    state = await states.references(event.model_name, event.model_version, ctx)
    try:
        one = state.value.register(event)
        ctx.resources.samples.load(one)
    except (ValueError, ArtifactError) as error:
        raise Reject(str(error)) from error


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
    batch_id = event.batch_id or str(ctx.envelope.id)
    content = _content(arrays)
    marks = [seen.mark(f"id {batch_id}"), *([seen.mark(f"rows {content}")] if content else [])]
    shards = await states.seen(scope, [one.shard for one in marks], ctx)
    known = [seen.is_in(shards[one.shard].value, one.bits) for one in marks]
    if known[0]:
        return ()
    if any(known):
        return (telling.repeated(scope, batch_id, len(event.item_ids)),)
    registered = (await states.references(scope.model, scope.version, ctx)).value.of(scope.segment)
    references = ctx.resources.samples.load_all(registered)
    window = (await states.window(scope, ctx)).value
    opens = not window.items
    part = _short(
        scope.key("batch", batch_id)
    )  # processes remember the parts of all scopes, and ids may be counted in each
    batch = ctx.resources.batches.get(part)  # a run that was overtaken by another process
    if batch is None or batch.counted.keys() != {reference.digest for reference in references}:
        batch = _count(event, arrays, references)
    ctx.resources.hold(part, batch)
    states.parts(scope, ctx).put(part, batch)
    window.take(batch_id, part, batch.items, event.occurred_on)
    for one in marks:
        shards[one.shard].value = seen.added(shards[one.shard].value, one.bits)
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
    registered = (await states.references(scope.model, scope.version, ctx)).value.of(scope.segment)
    window = (await states.window(scope, ctx)).value
    if window.serial != event.serial or not window.items:
        return ()
    window.due = True
    settings: Settings = ctx.resources.settings
    if not window.is_full(settings.window_items, settings.min_items):
        return ()
    return await _close(scope, window, registered, ctx)


def _count(event: ObservationsRecorded, arrays: Mapping[str, Array], references: Iterable[Reference]) -> Batch:
    counted = {reference.digest: count(reference, arrays).pack() for reference in references}
    return Batch(len(event.item_ids), counted, answers.pack(event.item_ids, event.predictions))


def _content(arrays: Mapping[str, Array]) -> str:
    """The same for batches of which one is the other, sent again; empty: too little is in it to tell."""
    rows = zip(*(array[:LOOKED_AT] for array in arrays.values()), strict=True)
    different = {b"".join(value.tobytes() for value in row) for row in rows}
    return digest_of(arrays) if len(different) >= LEAST_REPEATED else ""


async def _gather(scope: Scope, window: Window, ctx: Context) -> list[Batch]:
    """The window's parts, in their order. Those that this process has just counted are not on the server yet."""
    held: Resources = ctx.resources
    if all(part in held.batches for part in window.parts):
        return [held.batches[part] for part in window.parts]
    stored = await states.parts(scope, ctx).items()
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
    parts = states.parts(scope, ctx)
    parts.clear()
    parts.put(part, batch)
    ctx.resources.hold(part, batch)
    window.parts = [part]


async def _close(scope: Scope, window: Window, registered: Sequence[Registered], ctx: Context) -> list[Event]:
    """The window's verdict, and what follows from it."""
    settings: Settings = ctx.resources.settings
    references = ctx.resources.samples.load_all(registered)
    batch, partials = _together(await _gather(scope, window, ctx))
    whole = (await states.book(scope.model, ctx)).value
    track = (await states.track(scope.model, scope.segment, ctx)).value
    ledger = (await states.ledger(scope.model, scope.segment, ctx)).value
    track.follow(scope.version)
    verdict, change = judge(whole.numbers, batch.items, references, partials, track.course, settings)
    found: list[Event] = [telling.evaluated(scope, window, verdict, _confidence(verdict.short, partials))]
    found += telling.broken(scope, window, track, verdict.violations)
    found += telling.drift_changed(scope, window, verdict, track, change, ledger.breach.is_open)
    match = verdict.match
    closed = Closed(
        number=verdict.number,
        window_id=window.window_id,
        version=scope.version,
        segment=scope.segment,
        reference_id=match.reference.reference_id if match else "",
        regime=match.reference.regime if match else "",
        flagged=verdict.flagged,
    )
    if batch.answers:
        (await states.packed_answers(scope.model, closed.number, ctx)).value = batch.answers
        (await states.closed(scope.model, closed.number, ctx)).value = Labelling(closed)
    whole.closed(blake2b(batch.answers, digest_size=8).hexdigest() if batch.answers else "")
    ledger.closed(closed, registered)
    window.begin()
    states.parts(scope, ctx).clear()
    if whole.early:
        found += await labels.join_early(scope.model, whole, ctx)
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


def _short(text: str) -> str:
    return blake2b(text.encode(), digest_size=9).hexdigest()


# --- labels ------------------------------------------------------------------------------------------------------------


@worker.on(LabelsRecorded)
async def label(event: LabelsRecorded, ctx: Context) -> Sequence[Event]:
    """Judge answers by labels."""
    return await labels.take(event, ctx)
