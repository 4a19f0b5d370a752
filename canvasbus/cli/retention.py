"""canvasbus retention list | set | clear | trim"""

import argparse
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from canvasbus.cli.confirm import confirm
from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column, size
from canvasbus.cli.times import UNITS, seconds_of
from canvasbus.consume.retention import Trimmer, check_policies, declare, policy_for, read_policies
from canvasbus.errors import CanvasbusError, ConfigError, TransportError
from canvasbus.operate import words
from canvasbus.operate.topics import answered, topic_keys
from canvasbus.transport.resp import check, command, commands
from canvasbus.wire.retention import MOST, Retention, read_full

COLUMNS = (
    Column("TYPE"),
    Column("AGE", right=True),
    Column("ENTRIES", right=True),
    Column("BYTES", right=True),
    Column("CAP", right=True),
    Column("WHEN FULL"),
    Column("NOW", flexible=True),
)
_SIZES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def run_list(context: Context, _: argparse.Namespace) -> int:
    """What is on record, and what is full now: then 1."""
    out, first = context.out, context.partitions[0]
    policies = {"*": Retention()} | context.link.run(read_policies(first))
    full: dict[str, Any] = {}
    for keys in context.partitions:
        (value,) = context.link.request(command("GET", keys.full))
        full |= read_full(check(value, "look at the retention"))
    rows: list[list[Cell | str]] = []
    for pattern in sorted(policies):
        policy = policies[pattern]
        held = [name for name in sorted(full) if policy_for(name, policies) is policy]
        if out.json:
            record = {"type": pattern, **msgspec.to_builtins(policy)}
            out.record(record | {"full": {name: msgspec.to_builtins(full[name]) for name in held}})
        else:
            now = "; ".join(f"{name}: {full[name]}" for name in held)
            rows.append([pattern, *_cells(policy), Cell(now, "red")])
    if rows:
        out.table(COLUMNS, rows)
    return 1 if full else 0


def _cells(policy: Retention) -> tuple[str, ...]:
    return (
        "any" if policy.max_age is None else _age(policy.max_age),
        "any" if policy.max_length is None else f"{policy.max_length:,}",
        "any" if policy.max_bytes is None else size(policy.max_bytes),
        "none" if policy.cap is None else f"{policy.cap:,}",
        policy.when_full,
    )


def run_set(context: Context, args: argparse.Namespace) -> int:
    """Change what is given, keep the rest of what is on record for this type or glob. Asks before a cap drops entries."""
    if not re.fullmatch(r"[a-z0-9_.*]+", args.type):
        raise ConfigError(f"{args.type!r} is neither a type nor a glob")
    known = context.link.run(read_policies(context.partitions[0]))
    changes: dict[str, Any] = {}
    for name, parse in (("max_age", seconds_of), ("max_length", count), ("max_bytes", count), ("cap", count)):
        value = getattr(args, name)
        if value is not None:
            changes[name] = None if value in ("any", "none") else parse(value, f"--{name.replace('_', '-')}")
    if args.when_full:
        changes["when_full"] = args.when_full
    if not changes:
        raise ConfigError(
            f"say what to change for {args.type!r}: --max-age, --max-length, --max-bytes, --cap, --when-full"
        )
    before = known.get(args.type, Retention())
    policy = msgspec.structs.replace(before, **changes)
    policies = check_policies({args.type: policy})
    capped = (policy.cap, policy.when_full) != (before.cap, before.when_full)
    dropped = _dropped(context, policy, known | policies) if capped else 0
    if args.dry_run:
        context.out.note(f"{words.count(dropped, 'entry')} would go, handled or not; nothing was changed")
        return 0
    if dropped:
        confirm(context, args, f"{words.count(dropped, 'entry')} will go, handled or not.")
    context.link.run(declare(context.partitions, policies))
    names = ("age", "entries", "bytes", "cap", "when full")
    on_record = ", ".join(f"{name} {cell}" for name, cell in zip(names, _cells(policy), strict=True))
    context.out.note(f"on record for {args.type}: {on_record}")
    return 0


def _dropped(context: Context, policy: Retention, policies: Mapping[str, Retention]) -> int:
    """How many entries a policy drops at once for being at its cap or above it."""
    if policy.cap is None or policy.when_full != "drop_with_loss_event":
        return 0
    topics = context.link.run(topic_keys(context.partitions))
    streams = [topic.stream for topic in topics if policy_for(topic.name, policies) is policy]
    replies = context.link.request(commands(*(("XLEN", stream) for stream in streams))) if streams else []
    lengths = [reply for reply in replies if answered(reply, "look at the topics")]
    return sum(max(0, int(length) - policy.cap + 1) for length in lengths)


def run_clear(context: Context, args: argparse.Namespace) -> int:
    """1 when there was nothing."""
    removed = 0
    for keys in context.partitions:
        (reply,) = context.link.request(command("HDEL", keys.retention, args.type))
        removed += check(reply, "clear the retention")
    if not removed:
        raise CanvasbusError(f"no retention of {args.type!r} on record in {context.where}")
    return 0


def run_trim(context: Context, _: argparse.Namespace) -> int:
    """Once, as a bus of the namespace does all the time: for namespaces in which nothing but Producers run."""
    out, total = context.out, 0
    out.acts = True
    problems: list[TransportError] = []
    for keys in context.partitions:
        trimmer = Trimmer(keys, source="canvasbus retention trim")
        looked = context.link.run(trimmer.look(0.0))
        total += trimmer.trimmed
        problems += looked.problems
        for loss in looked.losses:
            out.note(f"canvasbus: {loss.topic}: {loss.detail}")
        for problem in looked.problems:
            out.note(f"canvasbus: {problem}")
    streams = context.link.run(topic_keys(context.partitions, foreign=False))
    out.note(f"{words.count(total, 'entry')} removed from {words.count(len(streams), 'stream')}")
    return 1 if problems else 0


def count(text: str, option: str) -> int:
    """A number like 1000000, 5M, 2G or 512Mi. Raises ConfigError."""
    found = re.fullmatch(r"([\d_,]{1,50})\s*(k|m|g|ki|mi|gi)?b?", text.strip().lower())
    digits = found[1].replace("_", "").replace(",", "") if found else ""
    if not found or not digits or int(digits) == 0:
        raise ConfigError(f"{option} {text!r} is no number: use one like 1000000, 5M or 512Mi, or any")
    number = int(digits) * _SIZES[found[2] or ""]
    if number > MOST:
        raise ConfigError(f"{option} {text}: at most {MOST:,}, or any")
    return number


def _age(value: float) -> str:
    for unit in ("w", "d", "h", "m"):
        if value >= UNITS[unit] and value % UNITS[unit] == 0:
            return f"{value / UNITS[unit]:g}{unit}"
    return f"{value:g}s"
