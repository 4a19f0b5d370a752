"""canvasbus dlq list | show (redrive and purge: see redrive.py)"""

import argparse
from datetime import datetime
from typing import Any

import msgspec

from canvasbus import clock
from canvasbus.cli.context import Context
from canvasbus.cli.groups import named
from canvasbus.cli.output import Cell, Column, ago, moment, safe, safe_block, short
from canvasbus.cli.times import start_of
from canvasbus.errors import CanvasbusError, ConfigError
from canvasbus.operate.deadletter import DeadLetter, Filter, dead_letters
from canvasbus.operate.entry import View
from canvasbus.operate.groups import groups

COLUMNS = (
    Column("ID"),
    Column("GIVEN UP", right=True),
    Column("GROUP"),
    Column("TYPE"),
    Column("REASON"),
    Column("TRIES", right=True),
    Column("ERROR", flexible=True),
)
ERROR_WIDTH = 100


def run_list(context: Context, args: argparse.Namespace) -> int:
    """The newest dead letters, the newest last. 1 when there is no such group."""
    out = context.out
    wanted = chosen_by(args)
    found = context.link.run(dead_letters(context.partitions, wanted, limit=args.count))
    if not found.letters:
        check_group(context, args.group)
    if out.json:
        for letter in found.letters:
            out.record(for_machines(letter))
    elif not found.letters:
        out.note(f"no dead letters{' match' if wanted != Filter() else ''} in {context.where}")
    else:
        out.table(COLUMNS, [row(letter) for letter in found.letters])
        out.flush()
        if found.more:
            out.note(f"there are older ones: -n {args.count * 10} shows more")
    return 0


def chosen_by(args: argparse.Namespace, one: str | None = None) -> Filter:
    """What the options of `list`, `redrive` and `purge` say; `one`: the letter that is named."""
    since = start_of(args.since, "--since") if args.since else None
    until = start_of(args.until, "--until") if args.until else None
    return Filter(group=args.group, event_type=args.type, reason=args.reason, id=one, since=since, until=until)


def check_group(context: Context, name: str | None) -> None:
    """Nothing of this group matches: raises CanvasbusError where there is neither such a group nor what one left."""
    if name is None or context.link.run(dead_letters(context.partitions, Filter(group=name), limit=1)).letters:
        return
    named(name, context.link.run(groups(context.partitions, trust_lag=context.link.server.shared)), context)


def run_show(context: Context, args: argparse.Namespace) -> int:
    """1 when there is no such dead letter."""
    wanted = Filter(group=args.group, id=args.id)
    found = context.link.run(dead_letters(context.partitions, wanted, limit=20)).letters
    if not found:
        raise CanvasbusError(
            f"no dead letter {args.id}{f' of group {args.group}' if args.group else ''} in {context.where}; "
            "`canvasbus dlq list` shows what is there"
        )
    groups = sorted({letter.group for letter in found})
    if len(groups) > 1:
        raise ConfigError(f"{args.id} was given up by {', '.join(groups)}: name one with --group")
    for letter in found:
        _show(context, letter)
    return 0


def row(letter: DeadLetter) -> list[Cell | str]:
    record = letter.record
    if record is None:
        return [letter.id, _age(letter.time), letter.group, "–", Cell("foreign", "red"), "–", letter.problem or ""]
    return [
        letter.id,
        _age(record.last_failure),
        letter.group,
        record.event_type,
        Cell(record.reason, "red"),
        str(record.attempts),
        short(" ".join(record.error.split()), ERROR_WIDTH),
    ]


def _age(when: datetime | None) -> str:
    return f"{ago(max(0.0, clock.time() - when.timestamp()))} ago" if when else "–"


def _show(context: Context, letter: DeadLetter) -> None:
    out = context.out
    original = letter.original(context.codec)
    event = _here(original) if original else None
    record = letter.record
    if out.json:
        more = {"traceback": record.traceback, "event": event} if record else {}
        out.record(for_machines(letter) | more)
        return
    if record is None:
        out.line(f"{letter.id} of group {safe(letter.group)}: {safe(letter.problem or '')}")
        return
    facts = {
        "dead letter": f"{letter.id} of group {letter.group}",
        "event": f"{record.event_type} {record.event_id or 'without a readable id'}, entry {record.entry_id}",
        "reason": f"{record.reason}, after {record.attempts} {'try' if record.attempts == 1 else 'tries'}",
        "handler": record.handler or "it never reached one",
        "failed": f"{moment(record.last_failure)} last, {moment(record.first_failure)} first under this worker",
        "worker": record.consumer,
    }
    for name, text in facts.items():
        out.line(f"{out.paint(f'{name:12}', 'bold')} {safe(text)}")
    out.line(f"{out.paint('error       ', 'bold')} {out.paint(safe_block(record.error), 'red')}")
    if record.traceback:
        out.line()
        out.line(safe_block(record.traceback.rstrip()))
    out.line()
    out.line(safe_block(msgspec.json.format(msgspec.json.encode(event, enc_hook=str), indent=2).decode()))


def _here(original: View) -> dict[str, Any]:
    """The event, where what this process cannot read of it does not look like why it was given up."""
    if original.reason is None:
        return dict(original.cloudevent)
    bare = {name: value for name, value in original.cloudevent.items() if name not in ("reason", "problem")}
    hint = "; --module NAME imports the module that declares it" if original.reason == "unknown_type" else ""
    why = f"{original.reason}: {original.cloudevent.get('problem', '')}{hint}"
    return bare | {"this_command_cannot_read_it": why}


def for_machines(letter: DeadLetter) -> dict[str, Any]:
    record = letter.record
    about: dict[str, Any] = {"id": letter.id, "group": letter.group, "partition": letter.partition}
    if record is None:
        return about | {"reason": "foreign", "error": letter.problem}
    return about | {
        "reason": record.reason,
        "error": record.error,
        "event_type": record.event_type,
        "event_id": record.event_id,
        "entry_id": record.entry_id,
        "handler": record.handler,
        "attempts": record.attempts,
        "first_failure": record.first_failure,
        "last_failure": record.last_failure,
        "consumer": record.consumer,
    }
