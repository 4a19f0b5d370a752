"""What is known of a model: the states that the group keeps, and the rules they keep themselves. No I/O, no bus.

    references   (model, version)            what its windows are compared with
    window       (model, version, segment)   the open one: how full, which batches
    seen         (model, version, segment)   in shards: which batches have been counted
    track        (model, segment)            the episode, and the windows of the long span
    ledger       (model, segment)            how its labels turned out
    book         (model)                     the number of the next window, and whose labels may still come
    answers      (model, window)             what was answered
    closed       (model, window)             which window that was, and which answers were judged by a label

Each lies under a key of its own and changes together with the acknowledgement, so that it does not matter which process
does what. A state holds a megabyte, and whoever changes it writes all of it: so nothing lies in the book that has the name
of a segment, a version or a batch, of which a model may have any number, and of any length.

An episode belongs to the segment and not to the version: a new version takes over what is open, and resolves it when the
data match a reference of its own.
"""

from collections.abc import Sequence
from datetime import datetime

from msgspec import Struct, field

from canvasbus.events import ArtifactRef, DriftDetected, ReferenceRegistered
from canvasbus_workers.monitoring import Course, Episode
from canvasbus_workers.monitoring.quality import Quality
from canvasbus_workers.naming import name_of

KEPT_WINDOWS = 256
"""Closed windows of a model whose labels may still come; later labels are counted and dropped."""
KEPT_REFERENCES = 8
"""Of one version: the first one and the newest."""
KEPT_TALLIES = 64
"""Kinds of windows of one segment whose labels may wait until there are enough of them."""
UNMATCHED = ""
"""In the place of a reference's id: no reference has this one."""


class Registered(Struct, frozen=True):
    """A reference as its event told it."""

    reference_id: str
    regime: str
    segment: str
    sample: ArtifactRef | None
    items: int
    correct: int
    columns: tuple[tuple[str, tuple[str, ...]], ...] = ()
    categorical: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float | None:
        """Share of correct rows, a little (one success and one failure) towards a half; None: it does not say."""
        return (self.correct + 1) / (self.items + 2) if self.items else None


def _differing(known: Registered, new: Registered) -> str:
    """For a person: what is not the same."""
    before, after = known.sample, new.sample
    moved = before is not None and after is not None and before.sha256 == after.sha256
    said = {"sample": "the same rows in another place" if moved else "other rows"}
    differing = (name for name in new.__struct_fields__ if getattr(known, name) != getattr(new, name))
    return ", ".join(said.get(name, f"other `{name}`") for name in differing)


class References(Struct):
    """Those of one version that are active."""

    known: list[Registered] = field(default_factory=list)

    def register(self, event: ReferenceRegistered) -> Registered:
        """Make it active; registering it again changes nothing. Raises ValueError for another one under its name: what was
        counted and told against a reference must stay true."""
        one = Registered(
            event.reference_id or (event.sample.sha256[:12] if event.sample else ""),
            event.regime,
            event.segment,
            event.sample,
            event.items,
            event.correct,
            tuple(sorted((name, tuple(names)) for name, names in event.columns.items())),
            tuple(sorted(event.categorical)),
        )
        if one in self.known:
            return one
        for other in self.known:
            if other.reference_id == one.reference_id:
                raise ValueError(
                    f"reference {one.reference_id} is registered already, with {_differing(other, one)}: references never "
                    "change, register it under another reference_id, for example with another regime"
                )
        self.known.append(one)
        if len(self.known) > KEPT_REFERENCES:
            del self.known[1]
        return one

    def of(self, segment: str) -> list[Registered]:
        """The segment's own; where it has none, those of all traffic."""
        return [one for one in self.known if one.segment == segment] or [one for one in self.known if not one.segment]


class Window(Struct):
    """The open window of one scope. Its counts lie in parts of their own."""

    serial: int = 0
    """Windows that were closed here before."""
    window_id: str = ""
    """The id of its first batch; empty: it has none yet."""
    items: int = 0
    batches: int = 0
    start: datetime | None = None
    end: datetime | None = None
    due: bool = False
    """Its time is up, and it had too few rows."""
    parts: list[str] = field(default_factory=list)
    """Names of its parts, in order."""

    def take(self, batch_id: str, part: str, items: int, when: datetime) -> None:
        """A batch belongs to it."""
        self.window_id = self.window_id or batch_id
        self.items += items
        self.batches += 1
        self.parts.append(part)
        self.start = when if self.start is None else min(self.start, when)
        self.end = when if self.end is None else max(self.end, when)

    def is_full(self, window_items: int, min_items: int) -> bool:
        """It is to be closed now."""
        return self.items >= (max(min_items, 1) if self.due else max(window_items, min_items))

    def begin(self) -> None:
        """It is closed: the next one."""
        self.serial += 1
        self.window_id, self.items, self.batches = "", 0, 0
        self.start = self.end = None
        self.due = False
        self.parts = []


class Track(Struct):
    """What windows of one segment leave behind."""

    version: str = ""
    course: Course = field(default_factory=Course)
    critical: bool = False
    """The open episode is known to cost quality."""
    told: DriftDetected | None = None
    """What was last told of the open episode."""
    broken: list[str] = field(default_factory=list)
    """`check:feature` that the last window broke: told once, not with every window."""

    def follow(self, version: str) -> None:
        """Windows of this version come: the long span begins anew, an open episode goes on."""
        if version != self.version:
            self.version = version
            self.course.spans.clear()


class Closed(Struct, array_like=True, frozen=True):
    """A closed window."""

    number: int
    window_id: str
    version: str
    segment: str
    reference_id: str
    """The one that it matches best; empty: there was none."""
    regime: str
    flagged: bool

    @property
    def kind(self) -> str:
        """The reference that it matches, or that it matches none: windows of one kind are judged together."""
        return UNMATCHED if self.flagged else self.reference_id


class Labelling(Struct):
    """A closed window, for the labels of its answers."""

    window: Closed | None = None
    """None: it is forgotten."""
    judged: bytes = b""
    """A bit for each answer: its label was counted."""


class Ledger(Struct):
    """How the labels of one segment turned out."""

    newest: Closed | None = None
    """The last closed window."""
    promised: dict[str, float] = field(default_factory=dict)
    """Reference that this one was compared with → the accuracy that it reached."""
    quality: Quality = field(default_factory=Quality)
    breach: Episode = field(default_factory=Episode)
    """Of its accuracy."""
    errors: Episode = field(default_factory=Episode)
    """Of its sequential detector."""
    tallies: dict[str, list[bool]] = field(default_factory=dict)
    """Kind of window → answers that were wrong or not, too few to be judged. What was added to last is last."""

    def closed(self, window: Closed, references: Sequence[Registered]) -> None:
        """Keep it, and what the references promised that it was compared with."""
        self.newest = window
        self.promised = {one.reference_id: one.accuracy for one in references if one.accuracy is not None}


class Answered(Struct, array_like=True, frozen=True):
    """A closed window whose labels may still come."""

    number: int
    digest: str
    """Of its packed answers."""


class Book(Struct):
    """What is known of one model as a whole."""

    numbers: int = 0
    """Windows closed so far."""
    answered: list[Answered] = field(default_factory=list)
    """The last ones that have answers, newest last."""
    early: list[str] = field(default_factory=list)
    """Batches of labels that came before their answers."""

    def closed(self, digest: str) -> None:
        """The next window is closed. `digest`: of its packed answers; empty: it has none."""
        if digest:
            self.answered = [*self.answered, Answered(self.numbers, digest)][-KEPT_WINDOWS:]
        self.numbers += 1


def episode_id(model: str, segment: str, signal: str, number: int) -> str:
    """The same from opening to resolution. `signal`: drift, accuracy or errors. `number`: of the episode."""
    return name_of(model, *([segment] if segment else []), signal, str(number))


class Scope(Struct, frozen=True):
    """Whose windows these are."""

    model: str
    version: str
    segment: str

    def key(self, what: str, *which: str) -> str:
        """A name for a state; `which` of several."""
        return name_of(what, self.model, self.version, self.segment, *which)
