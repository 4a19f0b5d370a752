"""canvasbus schema can-publish"""

import argparse
import difflib
import re
from collections.abc import Iterable, Sequence

from canvasbus.cli.context import Context
from canvasbus.cli.output import NOTHING, Cell, Column, safe
from canvasbus.cli.schema import newest_types
from canvasbus.consume.accepting import Does
from canvasbus.errors import CanvasbusError, ConfigError
from canvasbus.operate import words
from canvasbus.operate.rollout import GroupAnswer, WorkerAnswer, can_publish
from canvasbus.operate.topics import topic_keys

COLUMNS = (
    Column("EVENT"),
    Column("GROUP"),
    Column("WORKERS", right=True),
    Column("READ"),
    Column("AND"),
    Column("WHO", flexible=True),
)
_DOES = {
    Does.TAKE: Cell("take it", "green"),
    Does.PARK: Cell("park it", "yellow"),
    Does.GIVE_UP: Cell("give it up", "red"),
    Does.LEAVE: Cell("do not listen to it", "dim"),
    None: Cell("do not say", "yellow"),
}
_NAME = re.compile(r"[a-z][a-z0-9_.]*")
_VERSION = re.compile(r"[a-z][a-z0-9_.]*@v?([1-9][0-9]{0,8})")


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when some group that runs has nobody who takes it, or somebody who would make a dead letter of it."""
    out, asked = context.out, [_asked(context, what) for what in args.what] or _ours(context)
    answers = context.link.run(can_publish(context.partitions, asked))
    for name in sorted({name for name, _ in asked} - {answer.type for answer in answers}):
        _nobody_reads(context, name)
    rows = [row for answer in answers for row in _rows(answer)]
    if out.json:
        for answer in answers:
            out.record(_for_machines(answer))
    elif rows:
        out.table(COLUMNS, rows)
    for answer in answers:
        if answer.move:
            out.note(safe(f"{answer.type}@{answer.version}: group {answer.group}: {answer.move}"))
    for name, version in asked:
        if all(answer.fine for answer in answers if (answer.type, answer.version) == (name, version)):
            out.note(f"{name}@{version} can be published")
    return 0 if all(answer.fine for answer in answers) else 1


def _asked(context: Context, what: str) -> tuple[str, int]:
    """TYPE@VERSION, or TYPE for the version that is declared here."""
    name, at, _ = what.partition("@")
    if at:
        matched = _VERSION.fullmatch(what)
        if matched is None:
            raise ConfigError(f"{what!r}: name a type and a version, like drift.detected@3")
        return name, int(matched[1])
    if _NAME.fullmatch(name) is None:
        raise ConfigError(f"{what!r} is no event type: name one, like drift.detected or drift.detected@3")
    newest = context.codec.registry.latest(name)
    if newest is None:
        raise ConfigError(f"no event {name!r} is declared here: name its version, like {name}@2, or --module")
    return name, newest.version


def _ours(context: Context) -> list[tuple[str, int]]:
    return [(one.name, one.version) for one in newest_types(context)]


def _nobody_reads(context: Context, name: str) -> None:
    """Well for a new type, and for one that is misspelt not: raises CanvasbusError for what nobody has heard of."""
    known = {*context.codec.registry.names(), *(key.name for key in context.link.run(topic_keys(context.partitions)))}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1)
        raise CanvasbusError(
            f"{name}: no group reads it in {context.where}, there is no such topic, and no module declares it here"
            + (f"; did you mean {near[0]}?" if near else "; if it is a new type, name its --module")
        )
    context.out.note(f"{name}: no group reads it in {context.where}")


def _rows(answer: GroupAnswer) -> Iterable[Sequence[Cell | str]]:
    event = f"{answer.type}@{answer.version}"
    if not answer.workers:
        yield event, answer.group, Cell("0", "dim"), NOTHING, Cell("no worker runs", "dim"), ""
    for (versions, does), alike in _alike(answer.workers).items():
        yield (
            event,
            answer.group,
            str(len(alike)),
            words.versions(*versions) if versions else NOTHING,
            _DOES[does],
            ", ".join(alike),
        )


def _alike(workers: Iterable[WorkerAnswer]) -> dict[tuple[tuple[int, int] | None, Does | None], list[str]]:
    """Workers that read the same and do the same; those that read the newest first."""
    found: dict[tuple[tuple[int, int] | None, Does | None], list[str]] = {}
    for worker in workers:
        found.setdefault((worker.versions, worker.does), []).append(worker.consumer)
    return dict(sorted(found.items(), key=lambda item: item[0][0] or (0, 0), reverse=True))


def _for_machines(answer: GroupAnswer) -> dict[str, object]:
    return {
        "type": answer.type,
        "version": answer.version,
        "group": answer.group,
        "instance": answer.instance,
        "fine": answer.fine,
        "answer": answer.answer,
        "move": answer.move or None,
        "workers": [
            {
                "consumer": worker.consumer,
                "does": "unknown" if worker.does is None else worker.does.replace(" ", "_"),
                "since": worker.versions and worker.versions[0],
                "newest": worker.versions and worker.versions[1],
            }
            for worker in answer.workers
        ],
    }
