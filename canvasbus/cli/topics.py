"""canvasbus topics"""

import argparse

from canvasbus import clock
from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column, ago, moment, size
from canvasbus.contract.globs import glob_matches
from canvasbus.operate.topics import topics

COLUMNS = (
    Column("TOPIC"),
    Column("ENTRIES", right=True),
    Column("SIZE", right=True),
    Column("FIRST"),
    Column("LAST", right=True),
    Column("GROUPS", flexible=True),
)


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when a topic's key holds something that is not a stream, or a topic is at its cap."""
    out = context.out
    found = context.link.run(topics(context.partitions))
    if args.glob:
        found = [topic for topic in found if glob_matches(args.glob, topic.name)]
    if out.json:
        for topic in found:
            out.record(topic)
    elif not found:
        out.note(f"no topics{f' match {args.glob!r}' if args.glob else ''} in {context.where}")
    else:
        rows = []
        for topic in found:
            age = clock.time() - topic.last_time.timestamp() if topic.last_time else None
            last = f"{ago(max(age, 0))} ago" if age is not None else "–"
            readers = ", ".join(topic.groups) or "–"
            rows.append(
                (
                    Cell(topic.name, "red" if topic.problem else ""),
                    f"{topic.entries:,}" if not topic.problem else Cell("?", "red"),
                    size(topic.bytes),
                    Cell(moment(topic.first_time), "dim"),
                    last,
                    Cell(topic.problem, "red") if topic.problem else readers,
                )
            )
        out.table(COLUMNS, rows)
    for topic in found:
        if topic.problem:
            out.note(f"canvasbus: topic {topic.name}: {topic.problem}")
        if topic.full:
            out.note(f"canvasbus: topic {topic.name}: {topic.full}")
    return 1 if any(topic.problem or topic.full for topic in found) else 0
