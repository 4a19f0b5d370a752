"""Before a new version of an event is published: does everybody who would get it take it?

Asked are the groups that read the type: those that are on its stream, those that have declared it, by name or by a glob,
and those whose workers say so. Of each only the workers count whose heart beats while we look on; what they accept they
say themselves (`consume.accepting`). A worker that has read a moment ago and been killed since looks alive to XINFO
CONSUMERS, so that is believed of those alone that never beat: foreign readers, of whom nothing is known.

One worker that takes it is enough for a group, since the others park it. One that would make a dead letter of it is too
many: nobody can say who reads the next event. A group of one process (PER_INSTANCE) has nobody else to park it for. A
group without a living worker hinders nobody: its events wait, for workers of whom nothing is known yet.
"""

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from canvasbus.consume.accepting import Accepted, Does, acceptances
from canvasbus.consume.declaration import Group, read_group
from canvasbus.consume.liveness import DEAD_SECONDS
from canvasbus.operate.groups import without_life
from canvasbus.operate.topics import answered
from canvasbus.operate.words import text
from canvasbus.transport.resp import Operation, check, chunks, command, commands, pairs
from canvasbus.wire.keys import Keys


class Answer(enum.StrEnum):
    """What becomes of an event of some version in one group."""

    TAKEN = "taken"
    """Some worker takes it, and none makes a dead letter of it."""
    PARKED = "parked"
    """It waits for a worker that knows the version, and none is there."""
    GIVEN_UP = "given_up"
    """Some worker makes a dead letter of it."""
    UNKNOWN = "unknown"
    """Of none it is known that it takes it, and of some nothing is known."""
    NOBODY = "nobody"
    """No worker of the group that lives reads the type: it waits in the stream."""


@dataclass(frozen=True, slots=True)
class WorkerAnswer:
    """One living worker."""

    consumer: str
    does: Does | None
    """What it does with the event; None: unknown, it does not say what it accepts."""
    versions: tuple[int, int] | None
    """The oldest and the newest version of the type that it reads; None: none, or unknown."""


@dataclass(frozen=True, slots=True)
class GroupAnswer:
    """One group that reads the type."""

    type: str
    version: int
    group: str
    instance: bool
    """One process's own group (PER_INSTANCE)."""
    workers: tuple[WorkerAnswer, ...]
    """Those that live, sorted."""

    @property
    def answer(self) -> Answer:
        """What becomes of the event."""
        done = {worker.does for worker in self.workers}
        if not done - {Does.LEAVE}:
            return Answer.NOBODY
        for does, answer in ((Does.GIVE_UP, Answer.GIVEN_UP), (Does.TAKE, Answer.TAKEN), (None, Answer.UNKNOWN)):
            if does in done:
                return answer
        return Answer.PARKED

    @property
    def fine(self) -> bool:
        """This group is no reason not to publish."""
        return self.answer in (Answer.TAKEN, Answer.NOBODY)

    @property
    def move(self) -> str:
        """What is to be done before the version is published, or to be known."""
        said = f"{self.type} v{self.version}"
        match self.answer:
            case Answer.PARKED if self.instance:
                return (
                    f"this process has a group of its own and does not know {said}, which nobody else would take: replace "
                    "it by one that does"
                )
            case Answer.PARKED:
                return f"nobody takes {said}: deploy its workers that know it first"
            case Answer.GIVEN_UP:
                return f"{self._why()}: {said} would be a dead letter with them"
            case Answer.UNKNOWN:
                return f"its workers do not say what they accept: make sure that they know {said}, or upgrade their canvasbus"
            case Answer.NOBODY if not self.workers:
                return f"no worker runs: {said} waits for those to come"
            case Answer.NOBODY:
                return f"none of its workers listens to {self.type}, or all of them leave"
            case Answer.TAKEN:
                return ""

    def _why(self) -> str:
        gives_up = [worker for worker in self.workers if worker.does is Does.GIVE_UP]
        many = f"{len(gives_up)} of its workers" if len(gives_up) > 1 else "one of its workers"
        if any(worker.versions is None for worker in gives_up):
            return f"{many} would get it and {'do' if len(gives_up) > 1 else 'does'} not know the type: import it there"
        oldest = max(worker.versions[0] for worker in gives_up if worker.versions)
        if self.version < oldest:
            return f"{many} {'read' if len(gives_up) > 1 else 'reads'} nothing before v{oldest} (since=)"
        return f"the number is too far ahead of what {many} {'know' if len(gives_up) > 1 else 'knows'}"


@dataclass(slots=True)
class _Found:
    """One group while it is being put together."""

    declared: list[Group] = field(default_factory=list)
    """What it says in each partition."""
    on: set[str] = field(default_factory=set)
    """Types on whose streams it is."""
    idle: dict[bytes, int] = field(default_factory=dict)
    """Consumer → milliseconds since it last talked to the server."""
    said: dict[bytes, Accepted | None] = field(default_factory=dict)
    """Consumer → what it says that it accepts, the dead among them; None: what cannot be read."""

    @property
    def instance(self) -> bool:
        return any(one.instance for one in self.declared)

    def reads(self, event_type: str) -> bool:
        """It reads the type, or some worker of it says so."""
        return (
            event_type in self.on
            or any(one.listens_to(event_type) for one in self.declared)
            or any(said is not None and said.does(event_type, 1) is not Does.LEAVE for said in self.said.values())
        )

    def worker(self, consumer: bytes, event_type: str, version: int) -> WorkerAnswer:
        said = self.said.get(consumer)
        if said is None:
            return WorkerAnswer(text(consumer), None, None)
        return WorkerAnswer(text(consumer), said.does(event_type, version), said.versions(event_type))


def can_publish(partitions: Sequence[Keys], asked: Iterable[tuple[str, int]]) -> Operation[list[GroupAnswer]]:
    """For each type and version: every group that reads it, sorted by name. It takes up to a second, and DEAD_SECONDS where
    a worker of theirs is dead."""
    wanted = list(asked)
    found = yield from _groups(partitions, sorted({name for name, _ in wanted}))
    for name, said in (yield from acceptances(partitions, sorted(found))).items():
        found[name].said = said
    idle = {name: group.idle for name, group in found.items() if any(group.reads(kind) for kind, _ in wanted)}
    life = yield from without_life(partitions, idle, beating=True, seconds=DEAD_SECONDS)
    now = yield from acceptances(partitions, sorted(idle))
    for name, said in now.items():
        before, (everyone, gone) = found[name].said.keys(), life[name]
        everyone.update(said.keys() - before)  # they have begun meanwhile
        gone.update(before - said.keys())  # they have left
        found[name].said = said
    answers = []
    for event_type, version in wanted:
        for name in sorted(idle):
            group = found[name]
            everyone, gone = life[name]
            workers = tuple(group.worker(consumer, event_type, version) for consumer in sorted(everyone - gone))
            # An instance without a worker is a process that is gone: nobody will ever read there again.
            if group.reads(event_type) and (workers or not group.instance):
                answers.append(GroupAnswer(event_type, version, name, group.instance, workers))
    return answers


def _groups(partitions: Sequence[Keys], types: list[str]) -> Operation[dict[str, _Found]]:
    """Declared groups, and those on the streams of the types."""
    found: dict[str, _Found] = {}
    for keys in partitions:
        (declared,) = yield command("HGETALL", keys.groups)
        for raw, about in pairs(check(declared, "look for groups")).items():
            found.setdefault(text(raw), _Found()).declared.append(read_group(text(raw), about))
        for names in chunks(types):
            rows = yield commands(*(("XINFO", "GROUPS", keys.stream(name)) for name in names))
            there = [
                (event_type, pairs(row)[b"name"])
                for event_type, reply in zip(names, rows, strict=True)
                if answered(reply, f"look for groups on {event_type}")  # else no stream yet, or no stream at all
                for row in reply
            ]
            for pair in chunks(there):
                replies = yield commands(*(("XINFO", "CONSUMERS", keys.stream(name), raw) for name, raw in pair))
                for (event_type, raw), consumers in zip(pair, replies, strict=True):
                    group = found.setdefault(text(raw), _Found())
                    group.on.add(event_type)
                    for row in map(pairs, consumers if answered(consumers, f"look at group {text(raw)!r}") else []):
                        if not row[b"name"].startswith(b"~"):
                            group.idle[row[b"name"]] = min(row[b"idle"], group.idle.get(row[b"name"], row[b"idle"]))
    return found
