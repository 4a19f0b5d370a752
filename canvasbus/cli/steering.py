"""canvasbus groups pause | resume | reset | forget"""

import argparse
import getpass
import socket
from datetime import UTC, datetime

from canvasbus import clock
from canvasbus.cli.confirm import confirm
from canvasbus.cli.context import Context
from canvasbus.cli.groups import named
from canvasbus.cli.output import Cell, Column, ago, moment, short
from canvasbus.cli.times import seconds_of, start_of
from canvasbus.contract.globs import glob_matches
from canvasbus.errors import CanvasbusError, ConfigError, TransportError
from canvasbus.ids import id_order
from canvasbus.operate import steering
from canvasbus.operate.groups import Count, Group, groups
from canvasbus.operate.words import count

AHEAD_SECONDS = 60.0
"""How far the server's clock may be ahead of ours."""

MOVES = (
    Column("TOPIC", flexible=True),
    Column("FROM", right=True),
    Column("TO", right=True),
    Column("AGAIN", right=True),
    Column("SKIPPED", right=True),
)


def run_pause(context: Context, args: argparse.Namespace) -> int:
    """1 when there is no such group."""
    seconds = None if args.seconds is None else seconds_of(args.seconds, "--for")
    group = _group(context, args.group)
    context.link.run(steering.pause(context.partitions, group.name, by=me(), seconds=seconds))
    if context.out.json:
        context.out.record({"group": group.name, "paused": True, "seconds": seconds})
        return 0
    until = f"for {ago(seconds)}" if seconds else f"until `canvasbus groups resume {group.name}`"
    context.out.line(f"{group.name} is paused {until}; {steering.at_work(group)}")
    return 0


def run_resume(context: Context, args: argparse.Namespace) -> int:
    """0 also when the group was not paused."""
    was = context.link.run(steering.resume(context.partitions, args.group))
    if not was:
        _group(context, args.group)  # a mistyped name is an error
    if context.out.json:
        context.out.record({"group": args.group, "paused": False, "was_paused": was})
    else:
        context.out.line(f"{args.group} goes on" if was else f"{args.group} was not paused")
    return 0


def run_reset(context: Context, args: argparse.Namespace) -> int:
    """1 when the group is in use, or has none of the topics."""
    out, link = context.out, context.link
    out.acts = not args.dry_run
    to = args.to if args.to in ("earliest", "latest") else start_of(args.to, "--to")
    if to not in ("earliest", "latest") and id_order(to)[0] > (clock.time() + AHEAD_SECONDS) * 1000:
        raise ConfigError(f"--to {short(args.to, 50)} lies in the future: to skip all that is there say --to latest")

    def wanted(topic: str) -> bool:
        return not args.types or any(glob_matches(glob, topic) for glob in args.types)

    group = _group(context, args.group)
    if not args.dry_run:
        _check_unhindered(group)
    moves = link.run(steering.plan(context.partitions, group.name, to, wanted))
    if not moves:
        raise CanvasbusError(f"group {group.name!r} reads no such topic; it reads {_topics(group)}")
    if not out.json:
        out.table(MOVES, [_row(move, len(context.partitions) > 1) for move in moves])
    if args.dry_run:
        for move in moves if out.json else ():
            out.record(_for_machines(move, done=False))
        out.note("canvasbus: nothing was changed (--dry-run)")
        return 0
    again, skipped = (sum((getattr(move, name) for move in moves), Count(0)) for name in ("again", "skipped"))
    confirm(context, args, f"{group.name} will handle {_entries(again)} again and skip {skipped}.")
    group = _group(context, args.group)
    _check_unhindered(group)  # once more: while the person thought, a worker may have started or a pause have ended
    moved = 0
    try:
        for move in moves:
            link.run(steering.reset(context.partitions, group.name, [move]))
            moved += 1
            if out.json:  # a program must not read that something is done before it is
                out.record(_for_machines(move, done=True))
    except (KeyboardInterrupt, CanvasbusError):
        out.note(
            f"interrupted: {group.name} has been moved on {moved:,} of {count(len(moves), 'stream')} at least; the same command "
            "again does the rest"
        )
        raise
    out.note(f"canvasbus: {group.name} has been moved{'; it is still paused' if group.paused else ''}")
    return 0


def run_forget(context: Context, args: argparse.Namespace) -> int:
    """1 when the group is in use."""
    out, link = context.out, context.link
    out.acts = not args.dry_run
    group = _group(context, args.group)
    if group.alive:
        raise CanvasbusError(f"group {group.name!r} is in use: {steering.at_work(group)}; stop them first")
    lost = {
        "pending": sum(t.pending + t.handed_back + t.quarantine + t.parked for t in group.topics),
        "dead_letters": group.dead_letters,
    }
    unread = sum((topic.lag for topic in group.topics), Count(0))
    if out.json:
        out.record({"group": group.name, "topics": len(group.topics), "unread": unread.value, **lost})
    else:
        unknown = "an unknown number of dead letters"
        letters = unknown if group.dead_letters is None else count(group.dead_letters, "dead letter")
        out.line(
            f"{group.name} on {_topics(group)}: {_entries(unread)} not read, {lost['pending']:,} pending, {letters}, and what "
            "its handlers keep in ctx.state"
        )
    if args.dry_run:
        out.note("canvasbus: nothing was changed (--dry-run)")
        return 0
    confirm(context, args, f"All of that is lost when {group.name} is forgotten; the events themselves stay.")
    try:
        forgotten = link.run(steering.forget(context.partitions, group.name))
    except (KeyboardInterrupt, TransportError):
        out.note(f"interrupted: {group.name} may be forgotten in part; the same command again does the rest")
        raise
    if not forgotten:
        raise CanvasbusError(
            f"a worker of {group.name!r} has just started: the group stays, but some of what it had may be gone"
        )
    out.note(f"canvasbus: {group.name} is forgotten")
    return 0


def _group(context: Context, name: str) -> Group:
    link = context.link
    return named(name, link.run(groups(context.partitions, trust_lag=link.server.shared)), context)


def _check_unhindered(group: Group) -> None:
    """Raises CanvasbusError while the group cannot be moved."""
    if why := steering.hindrance(group):
        raise CanvasbusError(
            f"group {group.name!r} cannot be moved while {why}: `canvasbus groups pause {group.name}` first, and resume "
            "it afterwards"
        )


def _entries(number: Count) -> str:
    return f"{number} {'entry' if str(number) == '1' else 'entries'}"


def _topics(group: Group) -> str:
    return ", ".join(topic.topic for topic in group.topics) or "no topic"


def me() -> str:
    """Who gives the command."""
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (OSError, KeyError, ImportError):  # a container without a name for its user
        return socket.gethostname()


def _row(move: steering.Move, partitioned: bool) -> list[Cell]:
    name = f"{move.topic} [{move.partition}]" if partitioned else move.topic
    again = Cell(str(move.again), "yellow" if move.again.value else "dim")
    skipped = Cell(str(move.skipped), "yellow" if move.skipped.value else "dim")
    return [Cell(name), Cell(_place(move.at)), Cell(_place(move.to)), again, skipped]


def _place(entry_id: str) -> str:
    milliseconds, _ = id_order(entry_id)
    return "start" if not milliseconds else moment(datetime.fromtimestamp(milliseconds / 1000, UTC))


def _for_machines(move: steering.Move, *, done: bool) -> dict[str, object]:
    return {
        "topic": move.topic,
        "partition": move.partition,
        "from": move.at,
        "to": move.to,
        "again": move.again.value,
        "skipped": move.skipped.value,
        "exact": move.again.exact and move.skipped.exact,
        "done": done,
    }
