"""From late labels to quality: which answers they are about, and what follows for the windows of those.

An answer lies in a closed window, in one that is still open, or has not come yet: labels of the latter two wait until a
window closes. What labels mean for a window is decided in `judging`.

Each answer counts once, in whatever batches its labels come: a bit says that it has. So a batch of labels that is published
again changes nothing for as long as the window is remembered.
"""

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt

from canvasbus import Event
from canvasbus.events import LabelsRecorded
from canvasbus.worker import Context, Reject
from canvasbus_workers.drift import answers, judging, states, telling
from canvasbus_workers.drift.book import KEPT_TALLIES, Book, Closed
from canvasbus_workers.drift.settings import Settings
from canvasbus_workers.drift.states import Early

Array = npt.NDArray[Any]

KEPT_EARLY = 64
"""Batches of labels that may wait for their answers."""


async def take(event: LabelsRecorded, ctx: Context) -> Sequence[Event]:
    """Judge answers by labels. Only the test split: what may be learnt from says nothing about quality."""
    if event.split != "test" or not event.item_ids:
        return ()
    if len(event.labels) != len(event.item_ids):
        raise Reject(f"labels {event.batch_id}: {len(event.labels)} labels for {len(event.item_ids)} items")
    if not -(2**63) <= min(event.labels) <= max(event.labels) < 2**63:
        raise Reject(f"labels {event.batch_id}: a label is beyond 64 bits")
    whole = (await states.book(event.model_name, ctx)).value
    name = blake2b((event.batch_id or str(ctx.envelope.id)).encode(), digest_size=9).hexdigest()
    known = dict(zip(event.item_ids, event.labels, strict=True))  # an answer has one label: the last one
    items, truth = answers.hashed(known), np.array(list(known.values()), np.int64)
    found, open_ = await _join(event.model_name, whole, items, truth, ctx)
    if open_.any():
        early = Early(items[open_].tobytes(), truth[open_].tobytes())
        parts = states.early(event.model_name, ctx)
        parts.put(name, early)
        if name not in whole.early:
            whole.early.append(name)
        while len(whole.early) > KEPT_EARLY:
            parts.remove(whole.early.pop(0))
            ctx.log.info("labels dropped whose answers never came", model_name=event.model_name)
    return found


async def join_early(model: str, whole: Book, ctx: Context) -> list[Event]:
    """Labels that came before their answers: those of the windows that are closed by now."""
    parts = states.early(model, ctx)
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
    """Look the items up in the closed windows, newest first. Returns what follows, and which of them are in none. An answer
    is judged once, by the first label that comes: what was told of it is not taken back."""
    open_ = np.ones(len(items), bool)
    hits: list[tuple[Closed, list[bool]]] = []
    for one in reversed(whole.answered):
        known = await states.answers(model, one, ctx)
        here, places = known.find(items[open_])
        if here.any():
            labelling = await states.closed(model, one.number, ctx)
            closed = labelling.value.window
            if closed is None:  # its time is up; this process has its answers still
                labelling.delete()
                continue
            rows = np.flatnonzero(open_)[here]
            open_[rows] = False
            fresh, labelling.value.judged = known.not_yet(labelling.value.judged, places)
            if fresh.any():
                hits.append((closed, (known.said(places[fresh]) != truth[rows[fresh]]).tolist()))
            if not open_.any():
                break
    found: list[Event] = []
    for closed, wrong in reversed(hits):  # in the order of the windows
        found += await _judge(model, closed, wrong, ctx)
    return found, open_


async def _judge(model: str, closed: Closed, wrong: Sequence[bool], ctx: Context) -> list[Event]:
    settings: Settings = ctx.resources.settings
    ledger = (await states.ledger(model, closed.segment, ctx)).value
    was_breached = ledger.breach.is_open
    found = list(judging.labelled(model, ledger, closed, wrong, settings, settings.label_items))
    while len(ledger.tallies) > KEPT_TALLIES:
        few = ledger.tallies.pop(next(iter(ledger.tallies)))
        ctx.log.info("labels dropped: too few for a verdict", model_name=model, segment=closed.segment, items=len(few))
    if not ledger.breach.is_open or was_breached:
        return found
    track = (await states.track(model, closed.segment, ctx)).value
    newest = ledger.newest
    if track.course.episode.is_open and not track.critical and track.told is not None and newest is not None:
        track.critical = True
        found.append(telling.escalated(track.told, newest))
    return found
