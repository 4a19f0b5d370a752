"""canvasbus groups"""

import argparse
import difflib
from collections.abc import Sequence

from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column, ago
from canvasbus.consume.pausing import Pause
from canvasbus.errors import CanvasbusError
from canvasbus.operate import words
from canvasbus.operate.groups import Count, Group, GroupTopic, Reading, groups

COLUMNS = (
    Column("GROUP / TOPIC"),
    Column("WORKERS", right=True),
    Column("DEAD LETTERS", right=True),
    Column("LAG", right=True),
    Column("PENDING", right=True),
    Column("OLDEST", right=True),
    Column("NOTES", flexible=True),
)


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when the named group does not exist."""
    out, link = context.out, context.link
    found = link.run(groups(context.partitions, trust_lag=link.server.shared))
    if args.group is not None:
        found = [named(args.group, found, context)]
    if out.json:
        for group in found:
            out.record(_for_machines(group))
    elif not found:
        out.note(f"no groups in {context.where}: no worker has joined yet")
    else:
        rows = [row for group in found for row in _rows(group)]
        spare = 0 if any(row[-1].text for row in rows) else 1  # nothing to note: no column for it
        out.table(COLUMNS[: len(COLUMNS) - spare], [row[: len(row) - spare] for row in rows])
    return 0


def named(name: str, found: Sequence[Group], context: Context) -> Group:
    """The group of this name. Raises CanvasbusError, with what may have been meant."""
    for group in found:
        if group.name == name:
            return group
    known = [group.name for group in found]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}" if known else "there is none"
    raise CanvasbusError(f"no group {name!r} in {context.where}; {hint}")


def _rows(group: Group) -> list[list[Cell]]:
    workers = f"{group.alive}/{group.consumers}" if group.alive != group.consumers else str(group.alive)
    letters = "unknown" if group.dead_letters is None else f"{group.dead_letters:,}"
    head = [
        Cell(group.name, "bold"),
        Cell(workers, "red" if not group.alive else "yellow" if group.alive < group.consumers else "green"),
        Cell(letters, "red" if group.dead_letters != 0 else "dim"),
    ]
    notes = ["one process's own"] if group.instance else []
    notes += [_paused(group.paused)] if group.paused else []
    notes += [] if group.topics else ["no topic yet"]
    rows = [[*head, *[empty := Cell("")] * 3, Cell(", ".join(notes), "yellow" if group.paused else "dim")]]
    for topic in group.topics:
        name, *numbers = _cells(topic)
        rows.append([name, empty, empty, *numbers])
    return rows


def _cells(topic: GroupTopic) -> list[Cell]:
    pools = (
        (topic.handed_back, "handed back"),
        (topic.quarantine, "in quarantine"),
        (topic.parked, "parked for newer workers"),
    )
    notes = [f"{count:,} {word}" for count, word in pools if count]
    if len(topic.accepts) > 1 or topic.parked:  # a rollout, under way or to be made
        notes += [_reading(one) for one in topic.accepts]
    old = topic.oldest_seconds or 0
    return [
        Cell("  " + topic.topic),
        Cell(str(topic.lag), "dim" if topic.lag.value == 0 else "yellow"),
        Cell(f"{topic.pending:,}", "" if topic.pending else "dim"),
        Cell(ago(topic.oldest_seconds), "red" if old >= 300 else "yellow" if old >= 30 else "dim"),
        Cell(", ".join(notes), "yellow"),
    ]


def _reading(these: Reading) -> str:
    verb = "reads" if these.workers == 1 else "read"
    return f"{words.count(these.workers, 'worker')} {verb} {words.versions(these.since, these.newest)}"


def _paused(pause: Pause) -> str:
    left = f" for another {ago(pause.seconds_left)}" if pause.seconds_left is not None else ""
    return f"paused{left}{' by ' + pause.by if pause.by else ''}"


def _for_machines(group: Group) -> dict[str, object]:
    return {
        "group": group.name,
        "instance": group.instance,
        "paused": group.paused and {"by": group.paused.by, "seconds_left": group.paused.seconds_left},
        "consumers_alive": group.alive,
        "consumers": group.consumers,
        "dead_letters": group.dead_letters,
        "topics": [
            {
                "topic": topic.topic,
                "lag": topic.lag.value,
                "lag_is": _sureness(topic.lag),
                "pending": topic.pending,
                "handed_back": topic.handed_back,
                "quarantine": topic.quarantine,
                "parked": topic.parked,
                "oldest_seconds": topic.oldest_seconds,
                "accepts": topic.accepts,
            }
            for topic in group.topics
        ],
    }


def _sureness(count: Count) -> str:
    return "unknown" if count.value is None else "exact" if count.exact else "about" if count.about else "at_least"
