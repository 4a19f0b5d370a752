"""Under which key each state of `book` lies, and for how long it is kept; and what one process holds besides: caches of what
cannot change. Handlers and labels reach the group's memory through this file only."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from msgspec import Struct

from canvasbus.worker import Context, Parts, State
from canvasbus_workers.drift.answers import Answers
from canvasbus_workers.drift.book import Answered, Book, Labelling, Ledger, References, Scope, Track, Window
from canvasbus_workers.drift.edge import Samples
from canvasbus_workers.drift.settings import Settings

KEPT_BATCHES = 512
"""Counted batches that a process remembers: those whose commit is on its way, and those that must run again."""
KEPT_ANSWERS = 512
"""Windows whose answers a process remembers."""


class Batch(Struct, array_like=True, frozen=True):
    """A part of a window: what some rows add to it."""

    items: int
    counted: dict[str, bytes]
    """Digest of a reference → packed counts."""
    answers: bytes


class Early(Struct, array_like=True, frozen=True):
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

    def hold(self, part: str, batch: Batch) -> None:
        """Remember a batch that was counted here."""
        self.batches[part] = batch
        while len(self.batches) > KEPT_BATCHES:
            self.batches.popitem(last=False)


async def references(model: str, version: str, ctx: Context) -> State[References]:
    """Those of a version."""
    return await ctx.state(Scope(model, version, "").key("references"), References, ttl=_settings(ctx).keep_seconds)


async def window(scope: Scope, ctx: Context) -> State[Window]:
    """The open one."""
    return await ctx.state(scope.key("window"), Window, ttl=_settings(ctx).keep_seconds)


async def seen(scope: Scope, shards: Iterable[int], ctx: Context) -> dict[int, State[bytes]]:
    """Shards of the batches that have been counted. Always in this order, and before the window: else two runs would wait
    for each other."""
    ttl = _settings(ctx).keep_seconds
    return {at: await ctx.state(scope.key("seen", str(at)), bytes, ttl=ttl) for at in sorted(set(shards))}


def parts(scope: Scope, ctx: Context) -> Parts[Batch]:
    """Of the open window."""
    return ctx.parts(scope.key("open"), Batch, ttl=_settings(ctx).keep_seconds)


async def track(model: str, segment: str, ctx: Context) -> State[Track]:
    """Of a segment, whatever version answers."""
    return await ctx.state(Scope(model, "", segment).key("track"), Track, ttl=_settings(ctx).keep_seconds)


async def ledger(model: str, segment: str, ctx: Context) -> State[Ledger]:
    """Of a segment, whatever version answers."""
    return await ctx.state(Scope(model, "", segment).key("ledger"), Ledger, ttl=_settings(ctx).keep_seconds)


async def book(model: str, ctx: Context) -> State[Book]:
    """Of a model."""
    return await ctx.state(Scope(model, "", "").key("book"), Book, ttl=_settings(ctx).keep_seconds)


async def packed_answers(model: str, number: int, ctx: Context) -> State[bytes]:
    """Of a closed window, packed."""
    key = Scope(model, str(number), "").key("answers")
    return await ctx.state(key, bytes, ttl=_settings(ctx).label_seconds)


async def answers(model: str, one: Answered, ctx: Context) -> Answers:
    """Of a closed window, to be searched."""
    held: Resources = ctx.resources
    key = f"{one.number}/{one.digest}/{model}"
    if key not in held.answers:
        held.answers[key] = Answers((await packed_answers(model, one.number, ctx)).value)
        if len(held.answers) > KEPT_ANSWERS:
            held.answers.popitem(last=False)
    return held.answers[key]


async def closed(model: str, number: int, ctx: Context) -> State[Labelling]:
    """What labels of its answers have to know of it."""
    key = Scope(model, str(number), "").key("closed")
    return await ctx.state(key, Labelling, ttl=_settings(ctx).label_seconds)


def early(model: str, ctx: Context) -> Parts[Early]:
    """Labels that came before their answers."""
    return ctx.parts(Scope(model, "", "").key("early"), Early, ttl=_settings(ctx).label_seconds)


def _settings(ctx: Context) -> Settings:
    resources: Resources = ctx.resources
    return resources.settings
