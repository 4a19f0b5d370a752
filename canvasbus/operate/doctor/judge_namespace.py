"""Judges what the server told of one namespace: its records, its keys, its topics. Pure; groups: `judge_groups`."""

from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from shlex import quote

from canvasbus.contract.bus_events import BusLoss
from canvasbus.contract.globs import OWN_TYPES
from canvasbus.errors import DecodeError
from canvasbus.operate.doctor.finding import Finding, Level
from canvasbus.operate.doctor.judge_groups import judge_groups
from canvasbus.operate.doctor.namespace import NamespaceFacts
from canvasbus.operate.words import count, some, span, text
from canvasbus.wire.codec import Codec

LATE_SECONDS = 5.0
"""Timers are looked at twice a second; one that is later has nobody who looks."""


def judge_namespace(facts: NamespaceFacts, wanted: int | None) -> Iterator[Finding]:
    """`wanted`: the number of partitions that somebody has set; None: nobody has."""
    if facts.refused:
        names = ", ".join(sorted(facts.refused))
        yield Finding(
            "note",
            "namespace",
            f"this user may not {names}: what hangs on it is not known of the namespace",
            "`canvasbus doctor --acl operator` prints what an operator needs",
        )
    yield from _records(facts, wanted)
    yield from _keys(facts)
    yield from _topics(facts)
    yield from _losses(facts)
    yield from _later(facts)
    yield from judge_groups(facts)


def _records(facts: NamespaceFacts, wanted: int | None) -> Iterator[Finding]:
    name, recorded = facts.namespace, facts.recorded
    if facts.recorded_error:
        yield Finding(
            "error",
            "namespace",
            facts.recorded_error,
            f"take the number that the workers are set to (`canvasbus config show`): HSET {{{name}:0}}:meta partitions N; "
            "RENAME the key first if it is no hash",
        )
    elif "HGET" in facts.refused:
        return
    elif recorded is None and not facts.keys:
        there = f"; there {'is' if len(facts.neighbours) == 1 else 'are'} {some(facts.neighbours)}"
        found = f"nobody has used the namespace {name!r} on this server yet{there if facts.neighbours else ''}"
        yield Finding("note", "namespace", found, estimate=not facts.complete)
    elif recorded is None:
        yield Finding(
            "warning",
            "namespace",
            f"the namespace {name!r} has keys, but its number of partitions is not on record: it was lost, or only "
            "strangers have written here",
            "start a worker or a producer with the right number, which writes it down",
        )
    elif wanted is not None and wanted != recorded:
        yield Finding(
            "error",
            "namespace",
            f"the namespace {name!r} has {count(recorded, 'partition')} here, this process is set to {wanted}: it will "
            "refuse to start",
            "set the same number everywhere, or use another namespace",
        )
    else:
        yield Finding("ok", "namespace", f"{name!r} has {count(recorded, 'partition')}")
    for partition, keys in sorted(facts.beyond.items())[:5]:
        yield Finding(
            "warning",
            "namespace",
            f"{count(keys, 'key')} of partition {partition}, which there is not: nobody reads what is in there",
            f"was the number of partitions changed by hand? HSET {{{name}:0}}:meta partitions {partition + 1}, or DEL them",
        )


def _level(facts: NamespaceFacts) -> Level:
    """Of what seems to be well: where something was not told, that is not known."""
    return "note" if facts.refused else "ok"


def _keys(facts: NamespaceFacts) -> Iterator[Finding]:
    for key, holds, should in facts.wrong[:10]:
        yield Finding(
            "error",
            "keys",
            f"{text(key)} holds a {holds}, not a {should}: what needs it fails or waits",
            "RENAME it: the bus makes its own anew, without what was in it before somebody wrote over it",
        )
    if len(facts.wrong) > 10:
        yield Finding(
            "error", "keys", f"and {count(len(facts.wrong) - 10, 'more key')} of another type than they should be"
        )
    if facts.foreign:
        yield Finding(
            "note",
            "keys",
            f"{count(facts.foreign, 'key')} under the namespace's prefix that the bus does not make, like "
            f"{text(facts.stranger)}",
        )
    total = sum(facts.keys.values())
    if not facts.wrong and total:
        kinds = ", ".join(f"{number:,} {kind}" for kind, number in facts.keys.most_common(4))
        kinds += ", and others" if len(facts.keys) > 4 else ""
        yield Finding(
            _level(facts), "keys", f"{count(total, 'key')} ({kinds}), of the right types", estimate=not facts.complete
        )


def _topics(facts: NamespaceFacts) -> Iterator[Finding]:
    read = {reading.topic for group in facts.groups.values() if group.declared for reading in group.readings}
    entries: dict[str, int] = {}
    for stream in facts.streams:
        entries[stream.topic] = entries.get(stream.topic, 0) + stream.entries
    for topic, full in sorted(facts.full.items()):
        outcome = {"block": "publishers wait", "reject": "publishing is refused"}.get(
            full.when_full, "entries are dropped"
        )
        yield Finding("error", "full", f"topic {topic}: {full}; {outcome}", topic=topic)
    for name in sorted(facts.no_policies)[:10]:
        yield Finding(
            "error",
            "retention",
            f"what is on record for {name!r} is no retention: while it is there nothing is trimmed, of any topic, and no "
            "cap holds",
            f"`canvasbus retention clear {quote(name)}`, or `set` it anew",
        )
    if not entries:
        return
    total = f"{count(len(entries), 'topic')} with {count(sum(entries.values()), 'entry')}"
    yield Finding(_level(facts), "topics", total, estimate=not facts.complete)
    unread = [topic for topic in sorted(entries) if topic not in read | OWN_TYPES and entries[topic]]
    if unread and not facts.refused & {"XINFO GROUPS", "HGETALL"}:
        yield Finding(
            "note",
            "topics",
            f"no declared group reads {some(unread)}: entries go by retention alone, whoever comes later finds the rest",
            "if a worker should: is it started, and on this namespace?",
            topic=unread[0] if len(unread) == 1 else None,
            estimate=not facts.complete,
        )
        yield from _misspelt(facts, unread, entries)


def _misspelt(facts: NamespaceFacts, unread: Sequence[str], entries: Mapping[str, int]) -> Iterator[Finding]:
    """Handlers of types that nobody has published, beside topics almost of that name that nobody reads."""
    readers: dict[str, list[str]] = {}
    for name in sorted(facts.groups):
        for topic in facts.groups[name].types:
            readers.setdefault(topic, []).append(text(name))
    for topic in sorted(topic for topic in readers if not entries.get(topic)):
        for near in get_close_matches(topic, unread, n=1, cutoff=0.85):
            yield Finding(
                "note",
                "topics",
                f"{topic}, read by {some(readers[topic])}, is empty, and nobody reads {near}",
                "if the handler is meant for that: mend the type in its `on`",
                group=readers[topic][0] if len(readers[topic]) == 1 else None,
                topic=topic,
            )


def _losses(facts: NamespaceFacts) -> Iterator[Finding]:
    if facts.newest_loss is None:
        return
    entry_id, payload = facts.newest_loss
    found = f"{count(facts.losses, 'bus.loss event')} in the last 24 hours"
    topic = group = None
    try:
        loss = Codec().decode(payload, stream_type="bus.loss", entry_id=entry_id.decode())[1]
    except DecodeError:
        loss = None  # a stranger's
    if isinstance(loss, BusLoss):
        topic, group = loss.topic, loss.group
        whose = f" of group {group}" if group else ""
        found += f"; the newest {span(facts.age(entry_id))} ago: {loss.reason}{whose} on topic {topic}"
    yield Finding(
        "warning",
        "losses",
        found,
        "`canvasbus tail --type bus.loss --from 24h` shows them",
        topic=topic,
        group=group,
        estimate=not facts.complete,
    )


def _later(facts: NamespaceFacts) -> Iterator[Finding]:
    late = [seconds for seconds in (facts.overdue_seconds, facts.inbox_seconds) if seconds and seconds > LATE_SECONDS]
    if late:
        yield Finding(
            "warning",
            "later",
            f"events for later are not published: the oldest has waited for somebody to do it for {span(max(late))}",
            "start a canvasbus-worker or an EventBus on this namespace: any of them does it",
        )
    if facts.timerless or facts.bodiless:
        lost = "when they are due" if facts.timerless else "what they carry"
        yield Finding(
            "error",
            "later",
            f"{count(facts.timerless or facts.bodiless, 'event')} for later without {lost}: somebody has deleted that",
            "start a canvasbus-worker or an EventBus on this namespace: it puts back what tells when it is due, and bus.loss "
            "tells what is gone",
        )
