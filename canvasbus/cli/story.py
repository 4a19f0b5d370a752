"""What the demo has seen so far, from the events on the bus alone. No I/O, nothing is drawn here.

The record knows which windows were corrupted, since it belongs to the side that corrupts them; every figure comes from
events: accuracy from metric.reported, drift from window.evaluated, versions from model.promoted.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from math import log10, sqrt
from typing import Any, Literal
from uuid import UUID

from canvasbus import Event
from canvasbus.cli.world import ONSET_CLEAN_AGAIN, ONSET_CORRUPTED, ONSET_NEW_HANDS, WINDOW, WINDOWS, Phase, phase_of
from canvasbus.events import (
    DataQualityViolated,
    DriftDetected,
    DriftResolved,
    HandlerFailed,
    IncidentOpened,
    IncidentResolved,
    LabelsRecorded,
    MetricRecovered,
    MetricReported,
    MetricThresholdBreached,
    ModelPromoted,
    ReferenceRegistered,
    RetrainFailed,
    RetrainRequested,
    RetrainStarted,
    RetrainSucceeded,
    WindowEvaluated,
)
from canvasbus.ids import id_order
from canvasbus.wire.envelope import Envelope

LEVEL = 0.01
"""The drift worker flags a window at this p-value."""

STRONGEST = 12.0
"""-log10 of a p-value is shown up to here."""

AFTER = 5
"""Windows at the end of a shift whose mean is its result."""

Mark = Literal["drift", "breach", "promoted", "resolved"]
Level = Literal["critical", "warning", "good", "info"]


@dataclass(slots=True)
class Row:
    """One window."""

    number: int
    version: str = ""
    p_value: float | None = None
    score: float = 0.0
    """The statistic named by `test`."""
    test: str = ""
    flagged: bool = False
    span: int = 1
    """Windows that were looked at together for it."""
    accuracy: float | None = None
    """Of the judged half, once its labels have come."""

    @property
    def evidence(self) -> float | None:
        """-log10 of the p-value, up to STRONGEST; None: not tested."""
        if self.p_value is None:
            return None
        return STRONGEST if self.p_value <= 10**-STRONGEST else max(0.0, -log10(self.p_value))


@dataclass(frozen=True, slots=True)
class Note:
    """Something that a person wants to know about."""

    seconds: float
    window: int
    type: str
    """Of the event."""
    level: Level
    text: str


@dataclass(frozen=True, slots=True)
class Node:
    """One event of a chain."""

    id: UUID
    cause: UUID | None
    seconds: float
    type: str
    text: str


@dataclass(frozen=True, slots=True)
class Comparison:
    """What the killed worker and its twin said."""

    equal: int
    """Events with the same place, id and content."""
    different: int


@dataclass(slots=True)
class Killing:
    """A worker was killed in the middle of a window."""

    window: int
    in_hand: int
    """Entries that it was given, and that were not done."""
    seconds: float | None = None
    """Until all of them were done by another one; None: not yet."""
    comparison: Comparison | None = None
    """At the end of the story, or as far as it came."""


@dataclass(slots=True)
class Alarms:
    """What became of all that could alarm somebody."""

    heard: int = 0
    """drift.detected, metric.threshold_breached, data_quality.violated, retrain.failed, handler.failed"""
    opened: list[str] = field(default_factory=list)
    """Ids of incidents, each time that one was opened."""
    worse: int = 0
    resolved: list[str] = field(default_factory=list)

    @property
    def once(self) -> bool:
        """No incident was opened twice, or resolved twice."""
        return all(len(set(ids)) == len(ids) for ids in (self.opened, self.resolved))

    @property
    def kept_quiet(self) -> int:
        """Those that were part of what was known already."""
        return self.heard - len(self.opened) - self.worse


@dataclass(slots=True)
class Runs:
    """What was trained for it."""

    fences: list[int] = field(default_factory=list)
    """Of the runs, in their order."""
    promoted: list[int] = field(default_factory=list)
    failed: int = 0
    in_flight: int = 0
    most_in_flight: int = 0

    @property
    def fenced(self) -> bool:
        """Each run has a greater fence than all before it, and only the newest run was ever promoted."""
        return all(a < b for series in (self.fences, self.promoted) for a, b in pairwise(series))


@dataclass(slots=True)
class Shift:
    """What one shift of the data did, and what was done about it. Accuracies are means over windows; None: unknown.
    Delays count windows from the onset, 0: in the first one; None: it did not happen."""

    name: Phase
    before: float | None
    """The clean windows before it."""
    during: float | None
    """The windows that the version answered which was in service when it came."""
    worst: float | None
    worst_window: int
    after: float | None
    """The last windows of the shift."""
    after_windows: int
    flagged: int
    """Windows that the input tests flagged, before the first new version was in service."""
    tested: int
    first_flag: int | None
    drift: int | None
    """drift.detected."""
    breach: int | None
    """Labels, which come two windows late, showed a loss of accuracy."""
    breach_is_older: bool
    """A loss was known before the shift, and had not been repaired."""
    promoted: int | None
    """The first new version."""
    versions: tuple[str, ...]
    learnt: float | None
    """The windows that new versions answered."""

    @property
    def left(self) -> float | None:
        """Accuracy that has not come back, before minus after; negative: gained. None: nobody knows."""
        return None if self.before is None or self.after is None else self.before - self.after

    @property
    def margin(self) -> float:
        """Two standard errors of `after`, which is a mean over few images; 0.0 without a figure."""
        items = self.after_windows * WINDOW // 2
        return 2 * sqrt(self.after * (1 - self.after) / items) if self.after is not None and items else 0.0


@dataclass
class Story:
    """The record. Feed it every event in order."""

    rows: dict[int, Row] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    marks: list[tuple[int, Mark]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    now: int = -1
    """The newest window that was evaluated."""
    version: str = ""
    """In service."""
    seconds: float = 0.0
    """When the last event came."""
    training: bool = False
    incident: str = ""
    """The severity of the open incident; empty: none."""
    killing: Killing | None = None
    alarms: Alarms = field(default_factory=Alarms)
    runs: Runs = field(default_factory=Runs)
    breaches: list[tuple[int, MetricThresholdBreached]] = field(default_factory=list)
    """With what was now: each time that labels showed a loss, reminders as well."""
    _chains: dict[UUID, list[Node]] = field(default_factory=dict)
    _latest: dict[str, UUID] = field(default_factory=dict)
    _promotions: list[tuple[int, str]] = field(default_factory=list)

    # --- taking events in ----------------------------------------------------------------------------------------

    def take(self, event: Event, envelope: Envelope, seconds: float) -> Note | None:
        """One event, `seconds` after the start. Returns the note that it is worth."""
        self.counts[envelope.type] = self.counts.get(envelope.type, 0) + 1
        self.seconds = seconds
        self.alarms.heard += isinstance(event, _ALARMS)
        self._measure(event)
        self._link(event, envelope, seconds)
        said = self._say(event)
        if said is None:
            return None
        note = Note(seconds, max(0, self.now), envelope.type, *said)
        self.notes.append(note)
        return note

    def killed(self, window: int, in_hand: int) -> Note:
        """A worker was killed with so many entries in its hands."""
        self.killing = Killing(window, in_hand)
        return self._note("kill -9", "critical", f"drift killed, holds {in_hand} batch{'es' * (in_hand != 1)}")

    def taken_over(self, seconds: float, comparison: Comparison) -> Note:
        """All that it left undone has been done."""
        assert self.killing is not None
        self.killing.seconds, self.killing.comparison = seconds, comparison
        if comparison.different:
            return self._note("kill -9", "critical", f"{comparison.different} events differ from a run without it")
        return self._note("kill -9", "good", f"taken over, ids equal, after {seconds:.1f} s")

    def compared(self, comparison: Comparison) -> None:
        """What the killed worker and its twin have said by now."""
        if self.killing is not None:
            self.killing.comparison = comparison

    def _note(self, what: str, level: Level, text: str) -> Note:
        note = Note(self.seconds, max(0, self.now), what, level, text)
        self.notes.append(note)
        return note

    @property
    def is_good(self) -> bool:
        """The corrupted images were answered with a new version, nobody gave up, and the killing left no trace."""
        compared = self.killing.comparison if self.killing else None
        same = compared is not None and compared.equal > 0 and not compared.different
        return bool(self.shifts()[0].versions) and not self.failures and same

    @property
    def events(self) -> int:
        """How many have come."""
        return sum(self.counts.values())

    @property
    def promotions(self) -> Sequence[tuple[int, str]]:
        """(window, version)"""
        return self._promotions

    def _row(self, window_id: str) -> Row:
        number = number_of(window_id)
        return self.rows.setdefault(number, Row(number))

    def _measure(self, event: Event) -> None:
        match event:
            case WindowEvaluated():
                row = self._row(event.window_id)
                row.version = event.model_version
                row.p_value = None if event.status == "warmup" else event.p_value
                row.test, row.score = event.drift_type, event.scores.get(event.drift_type, event.drift_score)
                row.flagged, row.span = event.status == "flagged", event.span
                self.now = max(self.now, row.number)
            case MetricReported(metric="accuracy"):
                self._row(event.window_id).accuracy = event.value
            case DriftDetected(state="opened"):
                self.marks.append((number_of(event.window_id), "drift"))
            case DriftResolved():
                self.marks.append((number_of(event.window_id), "resolved"))
            case MetricThresholdBreached():
                self.breaches.append((self.now, event))
                if not event.reminder:
                    self.marks.append((self.now, "breach"))
            case RetrainStarted():
                self.training = True
                self.runs.fences.append(event.fence)
                self.runs.in_flight += 1
                self.runs.most_in_flight = max(self.runs.most_in_flight, self.runs.in_flight)
            case RetrainSucceeded():
                self.runs.in_flight -= 1
            case RetrainFailed():
                self.training = False
                self.runs.in_flight -= 1
                self.runs.failed += 1
            case ModelPromoted():
                self.training = False
                self.runs.promoted.append(event.fence)
                self.version = event.model_version
                self._promotions.append((self.now, event.model_version))
                self.marks.append((self.now, "promoted"))
            case IncidentOpened():
                self.incident = event.severity
                if event.escalated:
                    self.alarms.worse += 1
                else:
                    self.alarms.opened.append(event.incident_id)
            case IncidentResolved():
                self.incident = ""
                self.alarms.resolved.append(event.incident_id)
            case HandlerFailed():
                self.failures.append(f"{event.group} gave up on {event.event_type}: {event.error}")

    def _say(self, event: Event) -> tuple[Level, str] | None:
        match event:
            case DriftDetected():
                level: Level = "critical" if event.severity == "critical" else "warning"
                return level, _drift(event)
            case DriftResolved():
                return "good", f"drift over: {event.regime or event.reference_id}"
            case MetricThresholdBreached():
                return "critical", f"{'still' if event.reminder else 'accuracy'} {event.value:.2f} < {event.bound:.2f}"
            case MetricRecovered():
                return "good", f"accuracy is back: {event.value:.2f}"
            case IncidentOpened():
                level = "critical" if event.severity == "critical" else "warning"
                return level, f"incident {'now ' * event.escalated}{event.severity}"
            case IncidentResolved():
                return "good", "incident resolved"
            case RetrainStarted():
                return "info", f"retraining {event.model_version}"
            case RetrainSucceeded():
                return "info", f"{event.model_version}: {event.train_items} images, {event.duration:.1f} s"
            case RetrainFailed():
                return "warning", f"{event.model_version} not promoted: {event.error}"
            case ModelPromoted():
                return "good", f"{event.model_version} in service"
            case HandlerFailed():
                return "critical", self.failures[-1]
        return None

    # --- chains --------------------------------------------------------------------------------------------------

    def _link(self, event: Event, envelope: Envelope, seconds: float) -> None:
        node = Node(envelope.id, envelope.causation_id, seconds, envelope.type, _about(event))
        self._chains.setdefault(event.correlation_id, []).append(node)
        if isinstance(event, MetricThresholdBreached | RetrainStarted):
            self._latest["labels"] = event.correlation_id
        elif isinstance(event, DriftResolved) or (isinstance(event, DriftDetected) and event.state == "opened"):
            self._latest["inputs"] = event.correlation_id  # an escalation is part of the labels' chain

    def chains(self) -> list[list[tuple[int, Node]]]:
        """The newest chain that labels set off and the newest that inputs set off, newest first, each as (depth, event)
        in the order of a tree: what followed from what."""
        found = [self._chains[correlation] for correlation in self._latest.values()]
        return [list(self._tree(nodes)) for nodes in sorted(found, key=lambda nodes: -nodes[0].seconds)]

    def _tree(self, nodes: Sequence[Node]) -> Iterator[tuple[int, Node]]:
        known = {node.id for node in nodes}
        below: dict[UUID | None, list[Node]] = {}
        for node in nodes:
            below.setdefault(node.cause if node.cause in known else None, []).append(node)

        def walk(cause: UUID | None, depth: int) -> Iterator[tuple[int, Node]]:
            for node in below.get(cause, ()):
                inner = list(walk(node.id, depth + 1))
                if inner or node.type not in _SIDE:
                    yield depth, node
                    yield from inner

        yield from walk(None, 0)

    # --- what came of it -----------------------------------------------------------------------------------------

    def shifts(self) -> tuple[Shift, Shift]:
        """The corrupted windows and the new hands."""
        return (
            self._shift("corrupted", range(ONSET_CORRUPTED), range(ONSET_CORRUPTED, ONSET_CLEAN_AGAIN)),
            self._shift("new hands", range(ONSET_CLEAN_AGAIN, ONSET_NEW_HANDS), range(ONSET_NEW_HANDS, WINDOWS)),
        )

    def _shift(self, name: Phase, calm: range, shifted: range) -> Shift:
        onset = shifted[0]
        rows = [self.rows[n] for n in shifted if n in self.rows]
        promoted = [(n, v) for n, v in self._promotions if n in shifted]
        first = [row for row in rows if row.version == rows[0].version]
        judged = [row for row in rows if row.accuracy is not None]
        after = judged[-AFTER:] if self.now >= shifted[-1] else []
        worst = min(judged, key=lambda row: row.accuracy or 0.0, default=None)
        flagged = [row.number for row in first if row.flagged]

        breach = next(((now, event) for now, event in self.breaches if event.window_number in shifted), None)

        def since(mark: Mark) -> int | None:
            return next((n - onset for n, m in self.marks if m == mark and n in shifted), None)

        return Shift(
            name=name,
            before=_mean([self.rows[n] for n in calm if n in self.rows]),
            during=_mean(first),
            worst=worst.accuracy if worst else None,
            worst_window=worst.number if worst else 0,
            after=_mean(after),
            after_windows=len(after),
            flagged=len(flagged),
            tested=sum(row.p_value is not None for row in first),
            first_flag=flagged[0] - onset if flagged else None,
            drift=since("drift"),
            breach=breach[0] - onset if breach else None,
            breach_is_older=breach is not None and breach[1].reminder,
            promoted=since("promoted"),
            versions=tuple(v for _, v in promoted),
            learnt=_mean([row for row in rows if row.version != rows[0].version]),
        )

    def false_flags(self) -> tuple[int, int]:
        """(flagged, tested) among the windows before anything had happened."""
        rows = [row for n, row in self.rows.items() if n < ONSET_CORRUPTED and row.p_value is not None]
        return sum(row.flagged for row in rows), len(rows)

    def summary(self, seconds: float) -> Mapping[str, Any]:
        """All of it as one object for machines; accuracies as shares, delays in windows."""
        false, tested = self.false_flags()
        return {
            "complete": self.now == WINDOWS - 1,
            "windows": len(self.rows),
            "seconds": round(seconds, 1),
            "events": self.events,
            "event_types": dict(sorted(self.counts.items())),
            "clean_windows_flagged": false,
            "clean_windows_tested": tested,
            "accuracy": {n: row.accuracy for n, row in sorted(self.rows.items())},
            "shifts": [{f: getattr(shift, f) for f in (*shift.__slots__, "left", "margin")} for shift in self.shifts()],
            "alarms": {
                "heard": self.alarms.heard,
                "incidents_opened": len(self.alarms.opened),
                "incidents_made_worse": self.alarms.worse,
                "incidents_resolved": len(self.alarms.resolved),
                "each_once": self.alarms.once,
                "nothing_new": self.alarms.kept_quiet,
            },
            "runs": {
                "fences": self.runs.fences,
                "promoted": self.runs.promoted,
                "failed": self.runs.failed,
                "most_at_a_time": self.runs.most_in_flight,
            },
            "killed": asdict(self.killing) if self.killing else None,
            "failures": self.failures,
        }

    def __repr__(self) -> str:
        return f"<Story at window {self.now}, {self.version or 'no model'}, {self.events} events>"


_ALARMS = (DriftDetected, MetricThresholdBreached, DataQualityViolated, RetrainFailed, HandlerFailed)

_SIDE = frozenset(
    {"window.evaluated", "metric.reported", "observations.recorded", "reference.registered", "alert.notification_due"}
)
"""Shown in a chain only where something followed from them."""


IN_ORDER = (
    "images.submitted",
    "labels.recorded",
    "retrain.requested",
    "observations.recorded",
    "window.evaluated",
    "metric.reported",
    "metric.threshold_breached",
    "metric.recovered",
    "drift.detected",
    "drift.resolved",
    "retrain.started",
    "reference.registered",
    "retrain.succeeded",
    "retrain.failed",
    "model.promoted",
    "incident.opened",
    "incident.resolved",
)
"""Entry ids tell which event came first, but for those of one millisecond on different streams: this order, of cause
and effect, is theirs."""

_PLACE = {name: at for at, name in enumerate(IN_ORDER)}


def order(entry_id: str, event_type: str) -> tuple[tuple[int, int], int]:
    """Sorts entries of several streams."""
    return id_order(entry_id), _PLACE.get(event_type, len(_PLACE))


def number_of(window_id: str) -> int:
    """`w017`, `w017/labels/test` → 17. Other ids are not the demo's: ValueError."""
    return int(window_id[1:4])


def _mean(rows: Sequence[Row]) -> float | None:
    values = [row.accuracy for row in rows if row.accuracy is not None]
    return sum(values) / len(values) if values else None


def _drift(event: DriftDetected) -> str:
    if event.state == "escalated" and event.severity == "critical":
        return "drift now critical"
    return f"drift {event.drift_type.partition(':')[2] or event.drift_type} {event.drift_score:.2f}"


def _about(event: Event) -> str:
    """What distinguishes this event in a chain."""
    match event:
        case LabelsRecorded():
            return f"{event.batch_id[:4]}, {event.split}"
        case DriftDetected():
            return _drift(event).removeprefix("drift ")
        case MetricThresholdBreached():
            return f"{event.value:.2f}<{event.bound:.2f}"
        case MetricRecovered():
            return f"accuracy {event.value:.2f}"
        case IncidentOpened():
            return event.severity
        case RetrainStarted() | ModelPromoted():
            return event.model_version
        case RetrainSucceeded():
            return f"{event.metrics.get('accuracy', 0):.2f} after {event.metrics.get('previous:accuracy', 0):.2f}"
        case RetrainFailed():
            return event.error
        case RetrainRequested():
            return event.reason
        case ReferenceRegistered():
            return event.regime
        case DriftResolved():
            return event.regime
    return str(getattr(event, "batch_id", "") or getattr(event, "window_id", ""))[:4]


def phase_starts() -> tuple[tuple[int, Phase], ...]:
    """(first window, phase)"""
    return tuple((n, phase_of(n)) for n in (0, ONSET_CORRUPTED, ONSET_CLEAN_AGAIN, ONSET_NEW_HANDS))
