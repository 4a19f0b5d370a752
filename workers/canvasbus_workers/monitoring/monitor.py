"""A monitor: fitted on references, it takes rows or whole windows and closes windows into verdicts.

    monitor = Monitor(Reference({"brightness": values, "embedding": vectors}))
    monitor.add({"brightness": some, "embedding": some_vectors})
    verdict = monitor.close()          # None: too few rows yet, they go on into the next window
    for report in verdict.reports: print(report.name, report.score, report.threshold, report.p_adjusted, report.effect)

Shards count apart and are merged: `a.merge(b)` makes the state that one monitor would have that had seen all rows, to
the last bit, in any order. `save` and `Monitor.load` keep it; references are immutable and are not in what is saved,
only their digests.

What a closed window leaves behind (its number, the flags of the last ones, the counts for the long span) is a `Course`.
Where many workers share one model the bus keeps it, and `judge` is all that they use of this.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec
import numpy as np
from msgspec import Struct, field

from canvasbus_workers.monitoring.episodes import Change, Episode
from canvasbus_workers.monitoring.partial import Partial, count
from canvasbus_workers.monitoring.policy import Policy
from canvasbus_workers.monitoring.reference import Arrays, Reference
from canvasbus_workers.monitoring.verdict import Comparison, Verdict, best, compare

KEPT_BATCHES = 256
"""Batches whose repetition is noticed."""


class Span(Struct):
    """A closed window, kept for the long span."""

    digest: str
    """Of the reference that it matched."""
    counts: bytes
    """A packed Partial."""


class Course(Struct):
    """What closed windows leave behind."""

    episode: Episode = field(default_factory=Episode)
    spans: list[Span] = field(default_factory=list)
    """The last windows that were not flagged, newest last."""


def judge(
    number: int,
    items: int,
    references: Sequence[Reference],
    partials: Mapping[str, Partial],
    course: Course,
    policy: Policy,
) -> tuple[Verdict, Change | None]:
    """The verdict on a window, and what it changes in its episode; `course` is brought forward. `partials`: digest of a
    reference → the window's counts against it; a reference against which not every row was counted is left out."""
    compared = [
        compare(reference, partials[reference.digest], policy)
        for reference in references
        if reference.digest in partials and partials[reference.digest].items == items
    ]
    short = best(compared)
    if short is None:
        return Verdict(number, items, "warmup", None, None), None
    match, flagged = short, bool(short.flagged)
    mine = Span(short.reference.digest, partials[short.reference.digest].pack())
    if flagged:
        course.spans.clear()
    else:
        slow = _long(short, [*course.spans, mine], policy)
        if slow is not None and slow.flagged:
            match, flagged = slow, True
        course.spans = [*course.spans, mine][1 - policy.long_span :]
    change = course.episode.feed(
        number, flagged=flagged, calm=short.calm(policy.calm_level), effect=match.effect, policy=policy
    )
    return Verdict(number, items, "flagged" if flagged else "ok", match, short, short.violations), change


def _long(short: Comparison, spans: Sequence[Span], policy: Policy) -> Comparison | None:
    """The last windows as one, when all of them matched the same reference."""
    digest = short.reference.digest
    if len(spans) < policy.long_span or any(span.digest != digest for span in spans[-policy.long_span :]):
        return None
    whole = Partial.empty(short.reference)
    for span in spans[-policy.long_span :]:
        whole.add(Partial.unpack(span.counts))
    return replace(compare(short.reference, whole, policy, policy.slow_level), span=policy.long_span)


class _Saved(Struct):
    references: list[str]
    policy: Policy
    number: int
    items: int
    course: Course
    open: dict[str, bytes]
    batches: list[str]


class Monitor:
    """Windows of one model's rows. Not thread-safe."""

    def __init__(self, *references: Reference, policy: Policy | None = None) -> None:
        self.policy = policy or Policy()
        self.number = 0
        """Of the open window."""
        self.course = Course()
        self._references: dict[str, Reference] = {}
        self._open: dict[str, Partial] = {}
        self._items = 0
        self._batches: list[str] = []
        for reference in references:
            self.register(reference)

    @property
    def items(self) -> int:
        """Rows in the open window."""
        return self._items

    @property
    def references(self) -> tuple[Reference, ...]:
        """Those that are active."""
        return tuple(self._references.values())

    def register(self, reference: Reference) -> None:
        """Make another reference active. It counts from the next window on."""
        self._references.setdefault(reference.digest, reference)

    def add(self, arrays: Arrays, *, batch_id: str = "") -> bool:
        """Count rows into the open window. False: these very rows, or this `batch_id`, were counted already, and nothing
        is counted. Raises ShapeError."""
        names = {name for name in (batch_id, digest_of(arrays)) if name}
        if names & set(self._batches):
            return False
        partials = {digest: count(reference, arrays) for digest, reference in self._references.items()}
        self._add(partials, len(next(iter(arrays.values()))) if arrays else 0)
        self._batches = [*self._batches, *sorted(names)][-KEPT_BATCHES:]
        return True

    def _add(self, partials: Mapping[str, Partial], items: int) -> None:
        for digest, partial in partials.items():
            whole = self._open.setdefault(digest, Partial.empty(self._references[digest]))
            whole.add(partial)
        self._items += items

    def merge(self, other: "Monitor") -> None:
        """Add the open window of another shard, which has the same references. Raises ValueError when it has others."""
        if set(other._references) != set(self._references):
            raise ValueError("monitors of different references cannot be merged")
        self._add(other._open, other._items)
        self._batches = sorted({*self._batches, *other._batches})[-KEPT_BATCHES:]

    def close(self) -> Verdict | None:
        """Judge the open window and begin the next one. None: it has fewer than `policy.min_items` rows, and stays open."""
        if self._items < self.policy.min_items:
            return None
        verdict, _ = judge(self.number, self._items, self.references, self._open, self.course, self.policy)
        self.number += 1
        self._open, self._items = {}, 0
        return verdict

    def judge(self, arrays: Arrays) -> Verdict | None:
        """A whole window: `add`, then `close`."""
        self.add(arrays)
        return self.close()

    def save(self) -> bytes:
        """The state, without the references."""
        opened = {digest: self._open[digest].pack() for digest in sorted(self._open)}
        digests = sorted(self._references)
        saved = _Saved(digests, self.policy, self.number, self._items, self.course, opened, sorted(self._batches))
        return msgspec.msgpack.encode(saved)

    @classmethod
    def load(cls, data: bytes, *references: Reference) -> "Monitor":
        """What was saved, with the same references. Raises ValueError when one of them is missing or another one."""
        saved = msgspec.msgpack.decode(data, type=_Saved)
        if {reference.digest for reference in references} != set(saved.references):
            wanted = ", ".join(digest[:12] for digest in saved.references)
            raise ValueError(f"this state belongs to the references {wanted}: give exactly those")
        monitor = cls(*references, policy=saved.policy)
        monitor.number, monitor._items, monitor.course = saved.number, saved.items, saved.course
        monitor._open = {digest: Partial.unpack(packed) for digest, packed in saved.open.items()}
        monitor._batches = saved.batches
        return monitor

    def statistics(self) -> dict[str, Any]:
        """Where it stands."""
        return {
            "window": self.number,
            "items": self._items,
            "episode": self.course.episode.state,
            "references": [reference.reference_id for reference in self.references],
        }

    def __repr__(self) -> str:
        return f"<Monitor at window {self.number}, {self._items} rows, {self.course.episode.state}>"


def digest_of(arrays: Arrays) -> str:
    """The same for the same rows, whatever their order in `arrays`; empty for no rows."""
    if not arrays or not len(next(iter(arrays.values()))):
        return ""
    digest = hashlib.blake2b(digest_size=12)
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        array = array.astype(np.str_) if array.dtype.kind == "O" else array
        digest.update(f"{name}{array.dtype.str}{array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
