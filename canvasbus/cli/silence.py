"""canvasbus silence add | list | expire

A silence is an event, so it is kept, and known to whoever listens, also when no alerts worker runs at the moment. One copy
goes to each partition: wherever an incident lies, the silence lies beside it.
"""

import argparse
import time
from datetime import timedelta
from typing import Any

from canvasbus import Event, clock
from canvasbus.cli.context import Context
from canvasbus.cli.output import NOTHING, Cell, Column, ago
from canvasbus.cli.steering import me
from canvasbus.cli.times import seconds_of
from canvasbus.contract.globs import globs_overlap
from canvasbus.errors import CanvasbusError, ConfigError
from canvasbus.ids import uuid7
from canvasbus.operate.alerts import GROUP, desk, not_taken
from canvasbus.operate.plugins import beside
from canvasbus.produce.fenced import declare_partitions
from canvasbus.produce.once import PartitionSender

COLUMNS = (
    Column("ID"),
    Column("MODEL"),
    Column("SEVERITY"),
    Column("SIGNAL"),
    Column("ENDS", right=True),
    Column("AUTHOR"),
    Column("COMMENT", flexible=True),
)
PATIENCE = 10.0
"""Seconds for which a server that goes away is waited for."""
TAKEN_WITHIN = 3.0
"""Seconds in which a worker that runs has heard of it."""


def run_add(context: Context, args: argparse.Namespace) -> int:
    """0 also when no worker has taken it yet."""
    from canvasbus.events import SilenceAdded

    patterns = {"model_name": args.model, "severity": args.severity, "signal": args.signal}
    given = {name: pattern for name, pattern in patterns.items() if pattern is not None}
    if not given:
        raise ConfigError("silence add: name at least one of --model, --severity, --signal (--model '*' means all)")
    words = beside(GROUP, "matching")
    for option, pattern, known in (
        ("--severity", args.severity, words.SEVERITIES),
        ("--signal", args.signal, words.SIGNALS),
    ):
        for one in ("*" if pattern is None else pattern).split("|"):
            if not any(globs_overlap(one, word) for word in known):
                raise ConfigError(f"{option} {one or repr(one)}: there are {', '.join(known)}")
    if not args.comment.strip():
        raise ConfigError("--comment is empty: say why, for whoever wonders that nobody was told")
    seconds = seconds_of(args.seconds, "--for")
    event = SilenceAdded(
        silence_id=uuid7().hex[-8:],
        until=clock.now() + timedelta(seconds=seconds),
        author=args.author or me(),
        comment=args.comment,
        **given,
    )
    _publish(context, event)
    taken = _is_taken(context, event.silence_id, there=True)
    if context.out.json:
        context.out.record({"silence_id": event.silence_id, "until": event.until, "taken": taken, **given})
        return 0
    shown = " ".join(f"{name}={pattern}" for name, pattern in given.items())
    context.out.line(f"silence {event.silence_id}: {shown} for {ago(seconds)}")
    _say(context, taken)
    return 0


def run_list(context: Context, _: argparse.Namespace) -> int:
    """Those in force; for machines also those that no worker has taken yet."""
    now, out = clock.time(), context.out
    silences = context.link.run(desk(context.partitions)).silences
    rows = []
    for silence_id, one in sorted(silences.items(), key=lambda item: item[1].until or float("inf")):
        if one.until and one.until <= now:
            continue
        if out.json:
            until = one.until or None
            out.record({"silence_id": silence_id, "until": until, **_plain(one.matcher, one), "taken": True})
            continue
        ends = f"in {ago(one.until - now)}" if one.until else Cell("never", "yellow")
        matcher = one.matcher
        rows.append(
            (silence_id, matcher.model_name, matcher.severity, matcher.signal, ends, one.author or NOTHING, one.comment)
        )
    if rows:
        out.table(COLUMNS, rows)
    elif not out.json:
        out.note(f"no silences in {context.where}")
    if not out.json:
        say_waiting(context)
        return 0
    for event in _waiting(context):
        until = event.until and event.until.timestamp()
        out.record({"silence_id": event.silence_id, "until": until, **_plain(event, event), "taken": False})
    return 0


def _waiting(context: Context) -> list[Any]:
    return context.link.run(not_taken(context.partitions[0], context.codec, clock.time()))


def say_waiting(context: Context) -> None:
    """Of silences that were added and that no worker has taken, so that they are in no list yet."""
    waiting = len(_waiting(context))
    if waiting:
        wait = "1 silence waits" if waiting == 1 else f"{waiting:,} silences wait"
        context.out.note(f"{wait} for an alerts worker (canvasbus-worker alerts)")


def run_expire(context: Context, args: argparse.Namespace) -> int:
    """1 when there is no such silence in force."""
    from canvasbus.events import SilenceExpired

    silences = context.link.run(desk(context.partitions)).silences
    unknown = [silence_id for silence_id in args.id if silence_id not in silences]
    if unknown:
        known = ", ".join(silences) or "none"
        raise CanvasbusError(f"no silence {unknown[0]!r} is in force; there are: {known}")
    context.out.acts = True
    for silence_id in args.id:
        _publish(context, SilenceExpired(silence_id=silence_id, author=me()))
        taken = _is_taken(context, silence_id, there=False)
        if context.out.json:
            context.out.record({"silence_id": silence_id, "expired": True, "taken": taken})
            continue
        context.out.line(f"silence {silence_id} has ended")
        _say(context, taken)
    return 0


def _publish(context: Context, event: Event) -> None:
    link, made = context.link, context.codec.encode(event)
    link.run(declare_partitions(context.settings.namespace, len(context.partitions)))
    for keys in context.partitions:
        (result,) = link.run(PartitionSender(keys).send([made], patience=PATIENCE))
        if not isinstance(result, bytes):
            raise result


def _is_taken(context: Context, silence_id: str, *, there: bool) -> bool:
    """True as soon as it is known everywhere; False when that takes longer than a worker needs."""
    until = clock.monotonic() + TAKEN_WITHIN
    while any((silence_id in context.link.run(desk([keys])).silences) != there for keys in context.partitions):
        if clock.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def _say(context: Context, taken: bool) -> None:
    if not taken:
        context.out.note(
            "no alerts worker has heard of it yet: it counts as soon as one runs (canvasbus-worker alerts)"
        )


def _plain(matcher: Any, one: Any) -> dict[str, str]:
    return {
        "model_name": matcher.model_name,
        "severity": matcher.severity,
        "signal": matcher.signal,
        "author": one.author,
        "comment": one.comment,
    }
