"""canvasbus spool list | verify | drain"""

import argparse
import logging
import shlex
from collections import Counter
from pathlib import Path

from canvasbus import clock
from canvasbus.cli.context import Context
from canvasbus.cli.output import NOTHING, Cell, Column, ago, size
from canvasbus.errors import ConfigError, Unavailable
from canvasbus.operate.spool import Contents, Damage, Spooled, drain, look_into
from canvasbus.operate.words import count
from canvasbus.produce.producer import ProducerStatistics

COLUMNS = (
    Column("SPOOL"),
    Column("OWNER"),
    Column("NAMESPACE"),
    Column("PARTITIONS", right=True),
    Column("EVENTS", right=True),
    Column("SIZE", right=True),
    Column("OLDEST", right=True),
    Column("SETTLED", right=True),
    Column("SERVER", flexible=True),
)
PATIENCE = 10.0
"""Seconds without progress after which `drain` gives up."""


def _root(args: argparse.Namespace) -> Path:
    if not args.path:  # of a variable that is not set; it would be the working directory
        raise ConfigError("PATH is empty: name the folder that Producer(spool=PATH) names")
    return Path(args.path)


def run_list(context: Context, args: argparse.Namespace) -> int:
    """Whose files lie in the spool, and what they hold."""
    found, out = look_into(_root(args)), context.out
    for process in found.processes if out.json else ():
        out.record(process)
    if found.processes and not out.json:
        out.table(COLUMNS, map(_row, found.processes))
        out.flush()
    elif not out.json:
        out.note(f"nothing in {args.path}")
    damaged = _damaged(found)
    if damaged:
        out.note(f"{len(damaged)} damaged: canvasbus spool verify {args.path}")
    return 0


def _row(process: Spooled) -> list[Cell | str]:
    owner = Cell(f"alive, pid {process.pid or '?'}", "green") if process.alive else Cell("dead", "yellow")
    oldest = NOTHING if process.oldest is None else ago(clock.time() - process.oldest.timestamp())
    return [
        process.name, owner, process.namespace or NOTHING, str(process.partitions or NOTHING), f"{process.events:,}",
        size(process.size), oldest, f"{process.settled:,}", process.server or NOTHING,
    ]  # fmt: skip


def run_verify(context: Context, args: argparse.Namespace) -> int:
    """1 when something cannot be read, or was set aside."""
    found, out = look_into(_root(args)), context.out
    damaged = _damaged(found)
    for name, damage, set_aside in damaged:
        if out.json:
            out.record({"spool": name, "file": damage.file, "intact": damage.intact, "size": damage.size})
        elif set_aside:
            out.line(
                f"{damage.file}: {damage.size:,} bytes that could not be read were set aside; they are yours to delete"
            )
        else:
            out.line(f"{name}/{damage.file}: only the first {damage.intact:,} of {damage.size:,} bytes can be read")
    if not out.json:
        events = sum(process.events for process in found.processes)
        spools, files = count(len(found.processes), "spool"), count(len(damaged), "damaged file")
        out.note(f"{spools}, {count(events, 'event')} to be sent, {files}")
    return 1 if damaged else 0


def _damaged(found: Contents) -> list[tuple[str, Damage, bool]]:
    """Spool, what is damaged, and whether that was set aside already."""
    broken = [(process.name, damage, False) for process in found.processes for damage in process.damaged]
    return broken + [(damage.file.partition(".")[0], damage, True) for damage in found.set_aside]


def run_drain(context: Context, args: argparse.Namespace) -> int:
    """1 when something could not be sent, its fate is unknown, or it waits for a producer of another kind."""
    out, settings, root = context.out, context.settings, _root(args)
    out.acts = True
    found = [process for process in look_into(root).processes if process.namespace in (settings.namespace, None)]
    partitions = len(context.partitions)
    alive = [process for process in found if process.alive]
    if alive:
        pids = ", ".join(str(process.pid or "?") for process in alive)
        out.note(f"{len(alive):,} of them belong to living processes (pid {pids}), which send them themselves")
    logging.getLogger("canvasbus.producer").addHandler(logging.NullHandler())  # what it has to tell is told here
    url = context.loaded.require_url(context.command)
    done = drain(root, url, settings.namespace, partitions, patience=PATIENCE, tell=lambda now: _tell(context, now))
    if out.json:
        words = ("recovered", "stored", "refused", "unknown", "dropped", "quarantined", "waiting_events")
        out.record({word: getattr(done, word) for word in words})
    else:
        out.line(f"{done.stored:,} of {done.recovered:,} events are on {context.link.server.name} now")
    if done.waiting_events:
        are = "is" if done.waiting_events == 1 else "are"
        raise Unavailable(f"{count(done.waiting_events, 'event')} {are} still in {root}: {done.last_error}")
    bad = {word: getattr(done, word) for word in ("refused", "unknown", "dropped", "quarantined", "spool_errors")}
    if any(bad.values()):
        out.note(f"{', '.join(f'{number:,} {word}' for word, number in bad.items() if number)}: {done.last_error}")
    left = _left(context, root)
    return 1 if left or any(bad.values()) else 0


def _left(context: Context, root: Path) -> bool:
    """Say for whom waits what dead processes left and this drain did not send."""
    waiting: Counter[tuple[str, int]] = Counter()
    for process in look_into(root).processes:
        if not process.alive and process.namespace is not None and process.partitions is not None:
            waiting[process.namespace, process.partitions] += process.events
    mine = (context.settings.namespace, len(context.partitions))
    left = {whose: events for whose, events in waiting.items() if events}
    for (namespace, partitions), events in sorted(left.items()):
        of = count(events, "event") + (" is" if events == 1 else " are")
        if (namespace, partitions) == mine:  # its process has died since, or somebody looked at it just then
            context.out.note(f"{of} left in {root}: drain once more")
            continue
        if namespace != mine[0]:
            why = f"of namespace {namespace!r}: drain once more with --namespace {shlex.quote(namespace)}"
        else:
            wait = "it waits" if events == 1 else "they wait"
            why = (
                f"because {wait} for a producer with partitions={partitions}, and {mine[1]} is the number here: drain with "
                f"--partitions {partitions} and the --url of a server where the namespace has so many, or none yet"
            )
        context.out.note(f"{of} left in {root}, {why}")
    return bool(left)


def _tell(context: Context, now: ProducerStatistics) -> None:
    if context.out.terminal and not context.out.json:
        context.out.note(f"{now.stored:,} of {now.recovered:,} sent")
