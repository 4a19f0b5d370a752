"""Judges consumer groups: who works, what waits, what was given up. Pure."""

from collections.abc import Iterator
from shlex import quote

from canvasbus.contract.globs import listens
from canvasbus.operate.doctor.finding import Finding
from canvasbus.operate.doctor.namespace import REDRIVEN, GroupFacts, NamespaceFacts, Owner, Reading
from canvasbus.operate.words import count, some, span, text
from canvasbus.wire.keys import FREE_POOL, SUSPECT_POOL, version_in

WAIT_SECONDS = 30.0
"""What was handed back is taken within a second or two where somebody has room."""
TAKEOVER_SECONDS = 60.0
"""The entries of a dead worker are taken over within ten."""
BEHIND_SECONDS = 300.0
HAND_SECONDS = 600.0
"""In one worker's hands for so long: told, since nobody else can know whether that is right."""
LEAKED = 1000


def judge_groups(facts: NamespaceFacts) -> Iterator[Finding]:
    """What is wrong with each group, and one line for all with which nothing is."""
    well: list[str] = []
    partly: list[str] = []
    for name in sorted(facts.groups):
        group = facts.groups[name]
        found = list(_group(group, declarations_known="HGETALL" not in facts.refused))
        yield from found
        if any(not reading.looked for reading in group.readings):
            partly.append(text(name))
        elif not found:
            alive = _alive(group)
            well.append(f"{text(name)} ({count(len(alive), 'worker') if alive is not None else 'workers unknown'})")
    if partly:
        found_partly = f"{count(len(partly), 'group')} with so many topics that not all were looked at: {some(partly)}"
        yield Finding("note", "groups", found_partly, "`canvasbus groups NAME` looks at one of them", estimate=True)
    if well:
        known = not facts.refused and all(group.lifeless is not None for group in facts.groups.values())
        yield Finding(
            "ok" if known else "note",
            "groups",
            f"{'no' if known else 'as far as is known no'} trouble with {some(well, 10)}",
            estimate=not facts.complete,
        )


def _alive(group: GroupFacts) -> set[bytes] | None:
    return None if group.lifeless is None else group.everyone - group.lifeless


def _group(group: GroupFacts, *, declarations_known: bool) -> Iterator[Finding]:
    name = text(group.name)
    if not group.declared and group.readings and declarations_known:
        topics = sorted({reading.topic for reading in group.readings})
        yield Finding(
            "warning",
            "group",
            f"group {name} on {some(topics)} was never declared by a worker: made by hand, or its declaration is lost. "
            "Retention does not wait for it",
            f"if nobody needs it: `canvasbus groups forget {quote(name)}`, or XGROUP DESTROY",
            group=name,
        )
    yield from _workers(group, name)
    yield from _hands(group, name)
    yield from _pools(group, name)
    yield from _bodies(group, name)
    yield from _letters(group, name)


def _waiting(group: GroupFacts) -> tuple[float, list[str]]:
    """Age of the oldest event that the group has not been given, and the topics where there is one."""
    waits = [
        (reading.unread_seconds, reading.topic) for reading in group.readings if reading.unread_seconds is not None
    ]
    return max((seconds for seconds, _ in waits), default=0.0), sorted({topic for _, topic in waits})


def _workers(group: GroupFacts, name: str) -> Iterator[Finding]:
    alive = _alive(group)
    oldest, unread = _waiting(group)
    pending = sum(owner.entries for reading in group.readings for owner in reading.owners.values())
    parts = []
    if unread:
        parts.append(f"events on {some(unread)}, the oldest of them {span(oldest)} old")
    if pending:
        parts.append(f"{count(pending, 'entry')} that {'was' if pending == 1 else 'were'} given to workers")
    work = " and ".join(parts)
    if group.paused:
        yield Finding(
            "note",
            "group",
            f"group {name} is paused" + (f"; waiting: {work}" if work else ""),
            f"`canvasbus groups resume {quote(name)}`",
            group=name,
        )
    elif alive is None or (not group.declared and not group.everyone):
        pass
    elif not alive and group.instance:
        yield Finding(
            "note",
            "group",
            f"group {name} belongs to one process that is gone; any worker or EventBus that runs removes it within a minute",
            group=name,
        )
    elif not alive and work:
        yield Finding(
            "warning",
            "group",
            f"no worker of group {name} runs, and work waits: {work}",
            f"start its workers, or give it up: `canvasbus groups forget {quote(name)}`",
            group=name,
        )
    elif not alive:
        known = all(reading.looked for reading in group.readings)
        rest = "nothing waits for it" if known else "what waits for it was not looked at"
        yield Finding("note", "group", f"no worker of group {name} runs; {rest}", group=name)
    else:
        yield from _behind(group, name)


def _behind(group: GroupFacts, name: str) -> Iterator[Finding]:
    """Living workers, and events that wait all the same: for more of them, or for some that read these at all."""
    late = [reading for reading in group.readings if (reading.unread_seconds or 0.0) >= BEHIND_SECONDS]
    dropped = [reading for reading in late if not _says_it_reads(group, reading)]
    read = [reading for reading in late if reading not in dropped]
    for readings in filter(None, (read, dropped)):
        topics = sorted({reading.topic for reading in readings})
        oldest = max(reading.unread_seconds or 0.0 for reading in readings)
        if readings is dropped:
            unread = ", which its workers do not say that they read"
            give_up = f"redis-cli XGROUP DESTROY {quote(text(dropped[0].stream.key))} {quote(name)}"
            advice = (
                f"start workers that handle {'it' if len(topics) == 1 else 'these'}, or give up what waits, which retention "
                f"keeps for the group: {give_up}{', and the same for the others' if len(dropped) > 1 else ''}"
            )
        else:
            unread, advice = "", "start more workers, or look in their logs why they read no more"
        yield Finding(
            "warning",
            "behind",
            f"group {name} is behind on {some(topics)}{unread}: the oldest event that it has not been given is "
            f"{span(oldest)} old",
            advice,
            group=name,
            topic=topics[0] if len(topics) == 1 else None,
        )


def _says_it_reads(group: GroupFacts, reading: Reading) -> bool:
    """Who reads a type reads what was redriven of it, too."""
    return not group.declared or listens(reading.topic.removesuffix(REDRIVEN), group.types, group.globs)


def _hands(group: GroupFacts, name: str) -> Iterator[Finding]:
    """Consumers without heartbeat, and living ones that have had something for long."""
    if group.lifeless is None:
        return
    alive = group.everyone - group.lifeless
    held: dict[bytes, Owner] = {}
    for reading in group.readings:
        for consumer, owner in reading.owners.items():
            if not consumer.startswith(b"~"):
                known = held.setdefault(consumer, Owner(0, 0.0))
                known.entries += owner.entries
                known.seconds = max(known.seconds or 0.0, owner.seconds or 0.0)
    dead = sorted(group.lifeless & held.keys())
    if dead:
        entries = sum(held[consumer].entries for consumer in dead)
        oldest = max(held[consumer].seconds or 0.0 for consumer in dead)
        idle = (
            max((ms for r in group.readings for consumer, ms in r.idle.items() if consumer in dead), default=0) / 1000
        )
        stuck = not alive or idle >= TAKEOVER_SECONDS
        who = f"{some(map(text, dead), 3)} {'has' if len(dead) == 1 else 'have'}"
        yield Finding(
            "warning" if stuck else "note",
            "dead consumers",
            f"group {name}: {who} no heartbeat and {count(entries, 'entry')}, the oldest for {span(oldest)}; "
            + ("nobody takes them over" if stuck else "the others take them over within seconds"),
            (
                "start a worker of the group"
                if not alive
                else "look in the workers' logs, and at the rights of their user"
            )
            if stuck
            else "",
            group=name,
        )
    leaked = group.lifeless - held.keys()
    if leaked:
        yield Finding(
            "warning" if len(leaked) > LEAKED else "note",
            "leaked names",
            f"group {name}: {count(len(leaked), 'name')} of consumers that are gone and own nothing, like "
            f"{text(min(leaked))}",
            "running workers of the group tidy them away; redis-cli XGROUP DELCONSUMER does it too",
            group=name,
        )
    long = sorted(consumer for consumer in alive & held.keys() if (held[consumer].seconds or 0) >= HAND_SECONDS)
    if long:
        most = max(held[consumer].seconds or 0.0 for consumer in long)
        yield Finding(
            "note",
            "in hand",
            f"group {name}: {some(map(text, long), 3)} {'has' if len(long) == 1 else 'have'} had entries for up to "
            f"{span(most)}: handlers that take so long, retries that wait, or a handler that is stuck",
            group=name,
        )


def _pools(group: GroupFacts, name: str) -> Iterator[Finding]:
    """Entries that wait for somebody to take them."""
    for pool in sorted({owner for reading in group.readings for owner in reading.owners if owner.startswith(b"~")}):
        there = [(reading.topic, reading.owners[pool]) for reading in group.readings if pool in reading.owners]
        entries = sum(owner.entries for _, owner in there)
        oldest = max(owner.seconds or 0.0 for _, owner in there)
        topics = some(sorted({topic for topic, _ in there}))
        said = f"group {name}: {count(entries, 'entry')} on {topics}"
        version = version_in(text(pool))
        if pool == FREE_POOL.encode():
            if oldest >= WAIT_SECONDS:
                yield Finding(
                    "warning",
                    "handed back",
                    f"{said} handed back by workers that left, and taken by nobody for {span(oldest)}",
                    "start a worker of the group that handles these types",
                    group=name,
                )
        elif pool == SUSPECT_POOL.encode():
            yield Finding(
                "warning" if oldest >= BEHIND_SECONDS else "note",
                "quarantine",
                f"{said} in quarantine, up to {span(oldest)}: their worker died with them in hand; they run again, a few at "
                "a time",
                "start a worker of the group, if none runs; else look what they do to it",
                group=name,
            )
        elif version is not None:
            yield Finding(
                "note",
                "parked",
                f"{said} parked up to {span(oldest)} for workers that know version {version}",
                "start the newer workers: after a day (`park`) the events become dead letters",
                group=name,
            )
        else:
            yield Finding(
                "note", "parked", f"{said} under {text(pool)}, a pool that this version does not know", group=name
            )


def _bodies(group: GroupFacts, name: str) -> Iterator[Finding]:
    gone = [reading for reading in group.readings if reading.gone]
    if gone:
        lost, sampled = sum(r.gone for r in gone), sum(len(r.oldest) for r in gone)
        more = any(sum(owner.entries for owner in r.owners.values()) > len(r.oldest) for r in gone)
        topics = sorted({r.topic for r in gone})
        yield Finding(
            "error",
            "gone",
            f"group {name}: {lost} of the {sampled} oldest pending entries on {some(topics)} left the stream before they were "
            "handled: trimmed or deleted",
            "who trims or deletes past the bus (XTRIM, XADD MAXLEN, XDEL)? Its workers tell each such entry as bus.loss",
            group=name,
            topic=topics[0] if len(topics) == 1 else None,
            estimate=more,
        )


def _letters(group: GroupFacts, name: str) -> Iterator[Finding]:
    if group.letters is None:
        yield Finding("note", "dead letters", f"group {name}: whether it has dead letters is not known", group=name)
    elif group.letters:
        record = group.newest
        newest = (
            "the newest cannot be read" if record is None else f"the newest: {record.reason}, {_error(record.error)}"
        )
        age = f", {span(group.newest_seconds)} ago" if group.newest_seconds is not None else ""
        yield Finding(
            "warning",
            "dead letters",
            f"group {name} has given up {count(group.letters, 'event')}; {newest}{age}",
            f"`canvasbus dlq list --group {quote(name)}`, then redrive or purge",
            group=name,
            topic=record.event_type if record is not None and group.letters == 1 else None,
        )


def _error(error: str) -> str:
    line = " ".join(error.split())
    return line if len(line) <= 120 else line[:119] + "…"
