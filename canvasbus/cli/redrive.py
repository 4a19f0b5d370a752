"""canvasbus dlq redrive | purge"""

import argparse
import time
from collections.abc import Callable, Sequence

from canvasbus.cli.confirm import confirm
from canvasbus.cli.context import Context
from canvasbus.cli.dlq import COLUMNS, check_group, chosen_by, for_machines, row
from canvasbus.errors import CanvasbusError, ConfigError
from canvasbus.ids import id_order
from canvasbus.operate.deadletter import DeadLetter, dead_letters
from canvasbus.operate.redrive import portions, purge, redrive
from canvasbus.operate.words import count
from canvasbus.transport.resp import Operation, chunks
from canvasbus.wire.keys import Keys

SHOWN = 10
"""Letters of many that are shown before something is done to them."""


def run_redrive(context: Context, args: argparse.Namespace) -> int:
    """0 also when nothing matched; 1 when there is no such group or letter."""
    if args.rate is not None and not 0 < args.rate <= 1e6:
        raise ConfigError(f"--rate {args.rate:g}: letters a second, above 0")
    letters = _chosen(context, args)
    able = [letter for portion in portions(letters) for letter in portion]
    if not _agreed(context, args, able, "go back to work"):
        return 0
    pause = 1 / args.rate if args.rate else 0.0
    moved = _each(context, args, [[letter] for letter in able] if pause else portions(able), redrive, pause)
    _report(context, "redriven", moved, len(able), foreign=len(letters) - len(able))
    return 0


def run_purge(context: Context, args: argparse.Namespace) -> int:
    """0 also when nothing matched; 1 when there is no such group or letter."""
    letters = _chosen(context, args)
    if not _agreed(context, args, letters, "be removed for good"):
        return 0
    removed = _each(context, args, chunks(letters), purge, 0.0)
    _report(context, "purged", removed, len(letters))
    return 0


def _chosen(context: Context, args: argparse.Namespace) -> list[DeadLetter]:
    """The letters that match, the oldest first."""
    if args.id and args.bare:
        raise ConfigError(f"{args.bare} and --id {args.id}: name one letter, or choose several by the other options")
    one = args.id or args.bare
    found = context.link.run(dead_letters(context.partitions, chosen_by(args, one), limit=10**9)).letters
    if one and not args.group and len({letter.group for letter in found}) > 1:
        groups = ", ".join(sorted({letter.group for letter in found}))
        raise ConfigError(f"{one} was given up by {groups}: name one with --group")
    if not found:
        check_group(context, args.group)
        if one:
            raise CanvasbusError(f"no dead letter {one} in {context.where}; `canvasbus dlq list` shows what is there")
    return list(found[: args.count])


def _agreed(context: Context, args: argparse.Namespace, letters: Sequence[DeadLetter], fate: str) -> bool:
    """Show what is meant; `fate`: what would become of the letters. False: nothing is to be done."""
    out = context.out
    out.acts = not args.dry_run
    if out.json:
        if args.dry_run:
            for letter in letters:
                out.record(for_machines(letter))
    elif letters:
        out.table(COLUMNS, [row(letter) for letter in letters[:SHOWN]])
        out.flush()
        if len(letters) > SHOWN:
            out.note(f"and {len(letters) - SHOWN:,} more")
    if not letters:
        out.note(f"no dead letters match in {context.where}")
        return False
    if args.dry_run:
        out.note(f"{count(len(letters), 'dead letter')} would {fate}; nothing was changed")
        return False
    confirm(context, args, f"{count(len(letters), 'dead letter')} will {fate}.")
    return True


def _each(
    context: Context,
    args: argparse.Namespace,
    steps: Sequence[Sequence[DeadLetter]],
    operation: Callable[[Sequence[Keys], Sequence[DeadLetter]], Operation[int]],
    pause: float,
) -> int:
    partitions, done = context.partitions, 0
    try:
        for number, step in enumerate(steps):
            if number and pause:
                time.sleep(pause)
            done += context.link.run(operation(partitions, step))
    except (KeyboardInterrupt, CanvasbusError):
        what = "redriven" if operation is redrive else "purged"
        # Once more `-n` would mean others than it did.
        instead = f", with --until {behind(steps[-1][-1].id)} instead of -n," if args.count else ""
        context.out.note(
            f"interrupted: {count(done, 'dead letter')} {what} at least; the same command again{instead} does the rest"
        )
        raise
    return done


def behind(entry_id: str) -> str:
    """The id right behind this one."""
    milliseconds, sequence = id_order(entry_id)
    return f"{milliseconds}-{sequence + 1}"


def _report(context: Context, what: str, done: int, asked: int, *, foreign: int = 0) -> None:
    gone = asked - done
    if context.out.json:
        context.out.record({what: done, "gone": gone, "foreign": foreign})
        return
    more = [f"{gone:,} had gone meanwhile"] if gone else []
    more += [f"{count(foreign, 'foreign entry')} left in place"] if foreign else []
    context.out.note("; ".join([f"{count(done, 'dead letter')} {what}", *more]))
