"""canvasbus timers"""

import argparse

from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column, ago, moment
from canvasbus.operate.timers import timers

COLUMNS = (
    Column("DUE", right=True),
    Column("AT"),
    Column("TYPE"),
    Column("EVENT"),
    Column("GROUP"),
    Column("TIMER", flexible=True),
)
LATE_SECONDS = 5.0
"""A timer that has not come by then waits for a bus of the namespace, or for its stream."""


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when one is late, or waits too long to be put among the timers."""
    out = context.out
    coming = context.link.run(timers(context.partitions, context.codec, limit=args.count))
    late = 0
    rows: list[list[Cell | str]] = []
    for timer in coming.timers:
        left = (timer.due - coming.now).total_seconds() if timer.due else None
        late += left is not None and left < -LATE_SECONDS
        if out.json:
            out.record(timer)
            continue
        due = "?" if left is None else f"in {ago(left)}" if left > 0 else Cell(f"{ago(-left)} late", "red")
        names = timer.group or "–", timer.timer or "–"
        rows.append([due, Cell(moment(timer.due), "dim"), timer.event_type, timer.event_id or "unreadable", *names])
    if rows:
        out.table(COLUMNS, rows)
        out.flush()
    if coming.total > len(coming.timers):
        out.note(f"{coming.total:,} timers in all: -n {args.count * 10} shows more")
    elif not coming.total and not coming.unsorted and not out.json:
        out.note(f"no timers in {context.where}")
    if late or coming.unsorted:
        said = [f"{late:,} {'is' if late == 1 else 'are'} late"] if late else []
        said += (
            [f"{coming.unsorted:,} more {'is' if coming.unsorted == 1 else 'are'} not listed yet"]
            if coming.unsorted
            else []
        )
        out.note(
            f"{' and '.join(said)}: a second or two is usual while a worker or an EventBus of the namespace runs; while none "
            "does, nothing comes"
        )
    return 1 if late or coming.unsorted_seconds > LATE_SECONDS else 0
