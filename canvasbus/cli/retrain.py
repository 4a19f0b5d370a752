"""canvasbus retrain list | approve | reject"""

import argparse

from canvasbus import Event, clock
from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column, ago
from canvasbus.cli.retraining import OPEN, READS, Training, trainings
from canvasbus.cli.steering import me
from canvasbus.contract.registry import registry
from canvasbus.errors import CanvasbusError, DecodeError
from canvasbus.events import RetrainRejected, RetrainRequested
from canvasbus.operate.steering import is_idle
from canvasbus.operate.tail import Tail
from canvasbus.produce.fenced import declare_partitions
from canvasbus.produce.once import Dedupe, PartitionSender
from canvasbus.wire.envelope import Envelope
from canvasbus.wire.keys import partition_of

COLUMNS = (Column("ID"), Column("MODEL"), Column("STATUS"), Column("SINCE", right=True), Column("", flexible=True))
STYLES = {"waiting": "yellow", "running": "cyan", "failed": "red", "promoted": "green"}
PATIENCE = 10.0
"""Seconds for which a server that goes away in the middle is waited for."""


def run_list(context: Context, args: argparse.Namespace) -> int:
    """Always 0."""
    out, now = context.out, clock.now()
    found = [one for one in _look(context).values() if args.all or one.status in OPEN]
    rows: list[list[Cell | str]] = []
    for one in found:
        if out.json:
            out.record(one)
            continue
        since = ago((now - one.since).total_seconds())
        rows.append([one.id, one.model_name, Cell(one.status, STYLES.get(one.status, "")), since, one.about])
    if rows:
        out.table(COLUMNS, rows)
    elif not found and not out.json:
        out.note(f"nothing waits or runs in {context.where}" + ("" if args.all else "; --all shows what has ended"))
    return 0


def run_approve(context: Context, args: argparse.Namespace) -> int:
    """1 when there is no such proposal, or it has been answered."""
    one = _waiting(context, args.id)
    event = RetrainRequested(
        model_name=one.model_name,
        reason=args.reason or one.about,
        episode_id=one.episode_id,
        requested_by=me(),
        proposal_id=one.id,
        correlation_id=one.correlation_id,
    )
    return _publish(context, one, event, "approved")


def run_reject(context: Context, args: argparse.Namespace) -> int:
    """1 when there is no such proposal, or it has been answered."""
    one = _waiting(context, args.id)
    event = RetrainRejected(
        model_name=one.model_name,
        proposal_id=one.id,
        episode_id=one.episode_id,
        rejected_by=me(),
        reason=args.reason or "",
        correlation_id=one.correlation_id,
    )
    return _publish(context, one, event, "rejected")


def _look(context: Context) -> dict[str, Training]:
    names = {registry.of(cls).name for cls in READS}
    tail = Tail(context.partitions, names.__contains__, blocks=context.link.server.blocks)
    context.link.run(tail.begin())
    read: list[tuple[Envelope, Event]] = []
    while page := context.link.run(tail.page()):
        for entry in page:
            try:
                envelope, event = context.codec.decode(
                    dict(zip(entry.fields[::2], entry.fields[1::2], strict=True)).get(b"e", b""),
                    stream_type=entry.topic,
                    entry_id=entry.entry_id,
                )
            except DecodeError:
                continue  # a dead letter of the worker's, not a training
            read.append((envelope, event))
    return trainings(read)


def _waiting(context: Context, id_: str) -> Training:
    """The proposal with this id, or the only one of the model with this name."""
    found = _look(context)
    one = found.get(id_)
    if one is not None and one.kind == "proposal":
        if one.status != "waiting":
            raise CanvasbusError(f"{id_} has been answered: {one.status}, {one.about}")
        return one
    waiting = [one for one in found.values() if one.kind == "proposal" and one.status == "waiting"]
    of_model = [one for one in waiting if one.model_name == id_]
    if len(of_model) == 1:
        return of_model[0]
    there = ", ".join(one.id for one in of_model or waiting)
    raise CanvasbusError(f"no proposal {id_!r} waits{f'; these do: {there}' if there else ', nor does any other'}")


def _publish(context: Context, one: Training, event: Event, done: str) -> int:
    outgoing = context.codec.encode(event, causation_id=one.event_id)
    partitions = context.partitions
    context.link.run(declare_partitions(context.settings.namespace, len(partitions)))
    sender = PartitionSender(partitions[partition_of(outgoing.key, len(partitions))], dedupe=Dedupe())
    (result,) = context.link.run(sender.send([outgoing], patience=PATIENCE))
    if isinstance(result, Exception):
        raise result
    if context.out.json:
        context.out.record({"id": one.id, "model_name": one.model_name, "answer": done, "event_id": outgoing.id})
    else:
        context.out.line(f"{one.id} is {done}: {one.about}")
        if context.link.run(is_idle(partitions, "retrain")):
            context.out.note("no retrain worker is there: it counts as soon as one runs (canvasbus-worker retrain)")
    return 0
