"""What is known of a model, and what a verdict means for it: states in, events out. No I/O, no bus.

    references   (model, version)            what its windows are compared with
    window       (model, version, segment)   the open one: how full, which batches
    track        (model, segment)            the episode, and the windows of the long span
    book         (model)                     numbers of windows, which are closed, and how labels turned out

Each is kept by the group under a key of its own and changes together with the acknowledgement, so that it does not
matter which process does what. An episode belongs to the segment and not to the version: a new version takes over what
is open, and resolves it when the data match a reference of its own.

Input drift alone is a warning. It becomes critical when labels show that quality suffers; a loss of quality that no
input test sees is critical by itself.
"""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

from msgspec import Struct, field

from canvasbus import Event
from canvasbus.events import (
    ArtifactRef,
    DataQualityViolated,
    DriftDetected,
    DriftResolved,
    FeatureDrift,
    MetricRecovered,
    MetricReported,
    MetricThresholdBreached,
    ReferenceRegistered,
    Severity,
    WindowEvaluated,
)
from canvasbus_workers.monitoring import Comparison, Course, Episode, FeatureReport, Policy, Verdict
from canvasbus_workers.monitoring.episodes import Change
from canvasbus_workers.monitoring.expectations import Check, Violation
from canvasbus_workers.monitoring.quality import Finding, Labelled, Quality, bar

KEPT_WINDOWS = 256
"""Closed windows whose labels may still come; later labels are counted and dropped."""
KEPT_REFERENCES = 8
"""Of one version: the first one and the newest."""
KEPT_BATCHES = 128
"""Of one window's scope, whose repetition is noticed."""
KEPT_LINES = 64
"""Versions and segments whose promises are remembered."""
METRIC = "accuracy"
UNMATCHED = "unmatched"
TOLD_FEATURES, NAMED_FEATURES = 10, 20
_SEVERITIES: dict[Check, Severity] = {
    "schema": "critical",
    "type": "critical",
    "missing": "critical",
    "range": "warning",
    "category": "warning",
    "constant": "warning",
    "duplicate": "info",
}


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


class References(Struct):
    """Those of one version that are active."""

    known: list[Registered] = field(default_factory=list)

    def register(self, event: ReferenceRegistered) -> Registered:
        """Make it active. Registering it again changes nothing; another one under its name takes its place."""
        one = Registered(
            event.reference_id,
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
        self.known = [other for other in self.known if other.reference_id != one.reference_id] + [one]
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
    seen: list[str] = field(default_factory=list)
    """Ids and digests of the last batches, those of earlier windows too."""

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
    answers: str
    """Digest of its packed answers; empty: it has none."""

    @property
    def line(self) -> str:
        """Version and segment."""
        return f"{self.version}/{self.segment}"

    @property
    def kind(self) -> str:
        """The reference that it matches, or that it matches none: windows of one kind are judged together."""
        return UNMATCHED if self.flagged or not self.reference_id else self.reference_id


class Tally(Struct):
    """Labelled answers that wait until there are enough of them."""

    items: int = 0
    wrong: list[bool] = field(default_factory=list)


class Book(Struct):
    """What is known of one model."""

    numbers: int = 0
    """Windows closed so far."""
    windows: list[Closed] = field(default_factory=list)
    """The last ones, newest last."""
    quality: dict[str, Quality] = field(default_factory=dict)
    """Segment → how its labels turned out."""
    breaches: dict[str, Episode] = field(default_factory=dict)
    """Segment → the episode of its accuracy."""
    errors: dict[str, Episode] = field(default_factory=dict)
    """Segment → the episode of its sequential detector."""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """Kind of window → labels that are too few to be judged."""
    labelled: list[str] = field(default_factory=list)
    """Ids of the last batches of labels: one that comes again is not counted again."""
    early: list[str] = field(default_factory=list)
    """Batches of labels that came before their answers."""
    promised: dict[str, dict[str, float]] = field(default_factory=dict)
    """`version/segment` → reference → the accuracy that it reached."""

    def newest(self, segment: str) -> Closed | None:
        """The last closed window of a segment."""
        return next((window for window in reversed(self.windows) if window.segment == segment), None)

    def closed(self, window: Closed, references: Sequence[Registered]) -> None:
        """Keep it, and what the references promised that it was compared with."""
        self.numbers = window.number + 1
        self.windows = [*self.windows, window][-KEPT_WINDOWS:]
        told = {one.reference_id: one.accuracy for one in references if one.accuracy is not None}
        self.promised.pop(window.line, None)
        self.promised[window.line] = told
        while len(self.promised) > KEPT_LINES:
            self.promised.pop(next(iter(self.promised)))

    def episode_id(self, model: str, segment: str, signal: str, number: int) -> str:
        """The same from opening to resolution."""
        return "/".join(part for part in (model, segment, signal, str(number)) if part)


# --- windows -----------------------------------------------------------------------------------------------------------


class Scope(Struct, frozen=True):
    """Whose windows these are."""

    model: str
    version: str
    segment: str

    def key(self, what: str) -> str:
        """A name for a state: the lengths keep apart what joins to the same."""
        return f"{what}/{len(self.model)}.{len(self.version)}/{self.model}/{self.version}/{self.segment}"[:500]


def evaluated(scope: Scope, window: Window, verdict: Verdict, confidence: float) -> WindowEvaluated:
    """The window for charts and denominators."""
    match, short = verdict.match, verdict.short
    worst = match.worst if match else None
    return WindowEvaluated(
        model_name=scope.model,
        model_version=scope.version,
        segment=scope.segment,
        window_id=window.window_id,
        number=verdict.number,
        window_start=window.start,
        window_end=window.end,
        items=verdict.items,
        batches=window.batches,
        status=verdict.status,
        span=match.span if match else 1,
        drift_score=worst.score if worst else 0.0,
        drift_type=worst.name if worst else "",
        threshold=worst.threshold if worst else 0.0,
        level=worst.level if worst else 0.0,
        p_value=min(1.0, worst.p_adjusted) if worst else 1.0,
        effect=worst.effect if worst else 0.0,
        tested=len(verdict.reports),
        features=tuple(report.feature for report in match.flagged[:NAMED_FEATURES]) if match else (),
        excluded=tuple(violation.feature for violation in verdict.violations[:NAMED_FEATURES]),
        reference_id=match.reference.reference_id if match else "",
        regime=match.reference.regime if match else "",
        scores={report.name: report.score for report in verdict.reports[:NAMED_FEATURES]},
        confidence=min(1.0, max(0.0, confidence)),
        estimated_accuracy=short.estimate if short else None,
    )


def drift_changed(
    scope: Scope, window: Window, verdict: Verdict, track: Track, change: Change | None, breached: bool
) -> Iterator[Event]:
    """What a window changes in the episode of its segment."""
    match, episode = verdict.match, track.course.episode
    if match is None or change is None:
        return
    if change == "resolved":
        track.critical, track.told = False, None
        yield DriftResolved(
            model_name=scope.model,
            model_version=scope.version,
            segment=scope.segment,
            episode_id=_drift_id(scope, episode),
            window_id=window.window_id,
            window_number=verdict.number,
            windows=verdict.number - episode.first + 1,
            reference_id=match.reference.reference_id,
            regime=match.reference.regime,
        )
        return
    if change == "opened":
        track.critical = breached
    track.told = detected(scope, window, verdict.number, match, track, change)
    yield track.told


def detected(
    scope: Scope, window: Window, number: int, match: Comparison, track: Track, change: Change
) -> DriftDetected:
    """drift.detected for the data of a window."""
    worst, flagged = match.worst, match.flagged
    return DriftDetected(
        model_name=scope.model,
        drift_score=worst.score if worst else 0.0,
        drift_type=worst.name if worst else "",
        model_version=scope.version,
        segment=scope.segment,
        threshold=worst.threshold if worst else 0.0,
        level=worst.level if worst else 0.0,
        p_value=match.p_value,
        effect=match.effect,
        direction=worst.direction if worst else "mixed",
        tested=len(match.reports),
        drifted=len(flagged),
        features=tuple(_feature(report) for report in flagged[:TOLD_FEATURES]),
        items=match.items,
        reference_items=match.reference.rows,
        span=match.span,
        severity="critical" if track.critical else "warning",
        state="escalated" if change == "escalated" else "opened",
        reminder=change == "reminded",
        episode_id=_drift_id(scope, track.course.episode),
        window_id=window.window_id,
        window_number=number,
        window_start=window.start,
        window_end=window.end,
        first_window=track.course.episode.first,
        estimated_accuracy=match.estimate,
        reference_id=match.reference.reference_id,
        reference_hash=match.reference.digest,
    )


def escalated(told: DriftDetected, newest: Closed) -> DriftDetected:
    """The same episode, now that labels show what it costs; told by the newest window."""
    kept = {
        name: getattr(told, name) for name in told.__struct_fields__ if name not in ("occurred_on", "correlation_id")
    }
    new = {"severity": "critical", "state": "escalated", "reminder": False}
    where = {"window_id": newest.window_id, "window_number": newest.number, "model_version": newest.version}
    return DriftDetected(**{**kept, **new, **where})


def _drift_id(scope: Scope, episode: Episode) -> str:
    return "/".join(part for part in (scope.model, scope.segment, "drift", str(episode.opened)) if part)


def _feature(report: FeatureReport) -> FeatureDrift:
    others = ("psi", "kl", "jensen_shannon", "hellinger", "wasserstein", "total_variation", "frechet")
    return FeatureDrift(
        feature=report.feature,
        test=report.test,
        score=report.score,
        threshold=report.threshold,
        p_value=report.p_value,
        p_adjusted=report.p_adjusted,
        effect=report.effect,
        direction=report.direction,
        scores={name: round(report.measures[name].value, 6) for name in others if name in report.measures},
    )


def broken(scope: Scope, window: Window, track: Track, found: Sequence[Violation]) -> Iterator[DataQualityViolated]:
    """One event for each check that columns have come to break; what was broken in the last window is known already."""
    before, track.broken = set(track.broken), [f"{one.check}:{one.feature}" for one in found]
    for check, severity in _SEVERITIES.items():
        new = [one for one in found if one.check == check and f"{one.check}:{one.feature}" not in before]
        if not new:
            continue
        worst = max(new, key=lambda one: (one.observed or 0.0) - (one.allowed or 0.0))
        yield DataQualityViolated(
            model_name=scope.model,
            model_version=scope.version,
            segment=scope.segment,
            check=check,
            feature=worst.feature,
            features=tuple(one.feature for one in new[:NAMED_FEATURES]),
            observed=worst.observed,
            allowed=worst.allowed,
            items=worst.items,
            batch_id=window.window_id,
            severity=severity,
        )


def repeated(scope: Scope, batch_id: str, items: int) -> DataQualityViolated:
    """The rows of a batch came before, under another id."""
    return DataQualityViolated(
        model_name=scope.model,
        model_version=scope.version,
        segment=scope.segment,
        check="duplicate",
        observed=1.0,
        allowed=0.0,
        items=items,
        batch_id=batch_id,
        severity=_SEVERITIES["duplicate"],
    )


# --- labels ------------------------------------------------------------------------------------------------------------


def labelled(
    model: str,
    book: Book,
    window: Closed,
    wrong: Iterable[bool],
    policy: Policy,
    label_items: int,
) -> Iterator[Event]:
    """Labels have come for answers of a window. They are judged as soon as there are enough of its kind, by the window that
    the last of them belong to: metric.reported, and what follows from it."""
    kind = f"{window.segment}/{window.version}/{window.kind}"
    tally = book.tallies.setdefault(kind, Tally())
    tally.wrong.extend(wrong)
    if len(tally.wrong) < label_items:
        return
    del book.tallies[kind]
    items, errors = len(tally.wrong), sum(tally.wrong)
    yield MetricReported(
        model_name=model,
        metric=METRIC,
        value=(items - errors) / items,
        items=items,
        model_version=window.version,
        window_id=window.window_id,
        labels={"regime": window.regime} | ({"segment": window.segment} if window.segment else {}),
    )
    newest = book.newest(window.segment)
    told = book.promised.get(window.line, {})
    least = bar(told.get(window.kind), told.values())
    if newest is None or least is None or window.version != newest.version or window.kind != newest.kind:
        return
    judged = Labelled(window.number, window.window_id, window.version, window.kind, items, items - errors, least)
    quality = book.quality.setdefault(window.segment, Quality())
    finding = quality.judge(judged)
    yield from _accuracy_changed(model, book, window.segment, judged, finding, policy)
    changed = quality.advance(window.version, tally.wrong, policy)
    yield from _errors_changed(model, book, window, judged, changed, finding.calm, policy)


def _accuracy_changed(
    model: str, book: Book, segment: str, window: Labelled, finding: Finding, policy: Policy
) -> Iterator[Event]:
    episode = book.breaches.setdefault(segment, Episode())
    was_open = episode.is_open
    change = episode.feed(
        window.number, flagged=finding.breached, calm=finding.calm, effect=0.0, policy=_at_once(policy)
    )
    episode_id = book.episode_id(model, segment, METRIC, episode.opened)
    if change == "resolved":
        yield MetricRecovered(
            model_name=model,
            metric=METRIC,
            value=window.accuracy,
            bound=window.bar,
            model_version=window.version,
            window_id=window.window_id,
            window_number=window.number,
            episode_id=episode_id,
        )
    if finding.breached:
        yield MetricThresholdBreached(
            model_name=model,
            metric=METRIC,
            value=finding.correct / finding.items,
            bound=window.bar,
            p_value=finding.p_value,
            items=finding.items,
            model_version=window.version,
            window_id=window.window_id,
            window_number=window.number,
            first_window=finding.first,
            reference_id="" if window.regime == UNMATCHED else window.regime,
            episode_id=episode_id,
            reminder=was_open,
        )


def _errors_changed(
    model: str, book: Book, window: Closed, judged: Labelled, changed: bool, calm: bool, policy: Policy
) -> Iterator[Event]:
    episode = book.errors.setdefault(window.segment, Episode())
    change = episode.feed(window.number, flagged=changed, calm=calm, effect=0.0, policy=_at_once(policy))
    episode_id = book.episode_id(model, window.segment, "errors", episode.opened)
    if change == "opened":
        yield DriftDetected(
            model_name=model,
            drift_score=1 - judged.accuracy,
            drift_type=f"{policy.sequential}:errors",
            model_version=window.version,
            segment=window.segment,
            scope="errors",
            direction="up",
            tested=1,
            drifted=1,
            items=judged.items,
            episode_id=episode_id,
            window_id=window.window_id,
            window_number=window.number,
            first_window=window.number,
        )
    elif change == "resolved":
        yield DriftResolved(
            model_name=model,
            model_version=window.version,
            segment=window.segment,
            scope="errors",
            episode_id=episode_id,
            window_id=window.window_id,
            window_number=window.number,
            windows=window.number - episode.first + 1,
            reference_id=window.reference_id,
            regime=window.regime,
        )


def _at_once(policy: Policy) -> Policy:
    """One finding opens: it is significant at .001, or fired by itself. Reminders are the breach's own."""
    return Policy(enter=1, within=1, leave=policy.leave, remind=0)
