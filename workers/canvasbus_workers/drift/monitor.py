"""One model under watch: windows and labels in, findings out. No I/O.

    window ─► best match over the version's references ─► flag ─► Episodes ─► drift.detected / drift.resolved
    labels ─► joined by item id ─► judged by the matched reference ──────► metric.threshold_breached / .recovered

A window is flagged when every reference rejects it at .01, or when the last four windows together, none of them flagged
by itself, are rejected at .0025: a drift too slow for one window. Input drift alone is a warning. It becomes critical
when labels show that quality suffers; a loss of quality that no input test sees is critical by itself.

The state lives in this process. A batch that comes again gets the answer that it got the first time, so a redelivery
changes nothing; a restarted process begins in warmup and waits for the next references.
"""

from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from canvasbus import Event
from canvasbus.events import (
    DriftDetected,
    DriftResolved,
    MetricRecovered,
    MetricReported,
    MetricThresholdBreached,
    WindowEvaluated,
)
from canvasbus_workers.drift.episodes import Episodes
from canvasbus_workers.drift.quality import Labelled, Quality, Verdict
from canvasbus_workers.drift.references import PROBABILITIES, Arrays, Match, Reference, best_match, joined

SHORT_LEVEL = 0.01
LONG_LEVEL = 0.0025
LONG = 4
"""Windows that are looked at together."""
KEPT_WINDOWS = 256
"""Windows whose labels may still come; later labels are counted and dropped."""
KEPT_VERSIONS = 4
TOLERATED = 0.05
"""How far below the best reference's accuracy another one may set the bar."""
METRIC = "accuracy"
UNMATCHED = "unmatched"


@dataclass(frozen=True, eq=False)
class Window:
    """One batch of observations, and what became of it."""

    number: int
    window_id: str
    version: str
    match: Match | None
    flagged: bool
    answers: Mapping[str, int] = field(repr=False)
    """Item id → predicted class."""

    @property
    def regime(self) -> str:
        """The reference it matches, or that it matches none."""
        return UNMATCHED if self.flagged or self.match is None else self.match.reference_id


class Monitor:
    """The state of one model. Calls must come one at a time."""

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.dropped_labels = 0
        self._references: OrderedDict[str, dict[str, Reference]] = OrderedDict()
        self._windows: deque[Window] = deque(maxlen=KEPT_WINDOWS)
        self._by_item: dict[str, Window] = {}
        self._recent: deque[tuple[Window, Arrays]] = deque(maxlen=LONG)
        self._numbers = 0
        self._drift = Episodes()
        self._quality = Quality()
        self._breach = Episodes(enter=1)
        self._critical = False
        self._answered: OrderedDict[str, tuple[Event, ...]] = OrderedDict()

    def repeated(self, batch_id: str) -> tuple[Event, ...] | None:
        """What the batch gave the first time; None when it is new."""
        return self._answered.get(batch_id)

    # --- references ----------------------------------------------------------------------------------------------

    def register(self, version: str, reference: Reference) -> None:
        """Make a reference active for a version. Registering it again replaces it by itself."""
        self._references.setdefault(version, {})[reference.reference_id] = reference
        while len(self._references) > KEPT_VERSIONS:
            self._references.popitem(last=False)

    # --- windows -------------------------------------------------------------------------------------------------

    def observe(
        self, batch_id: str, version: str, answers: Mapping[str, int], arrays: Arrays, when: datetime
    ) -> tuple[Event, ...]:
        """Test one window. Returns window.evaluated, and a change of the drift episode if there is one."""
        known = self.repeated(batch_id)
        if known is not None:
            return known
        references = self._references.get(version, {}).values()
        match = best_match(references, arrays)
        flagged = match is not None and match.p_value <= SHORT_LEVEL
        if match is not None and not flagged:
            slow = self._long_match(version, match, arrays)
            if slow is not None and slow.p_value <= LONG_LEVEL:
                match, flagged = slow, True
        window = Window(self._numbers, batch_id, version, match, flagged, dict(answers))
        self._numbers += 1
        self._remember(window, arrays)
        found: list[Event] = [self._evaluated(window, arrays, when)]
        if match is not None:
            found.extend(self._drift_change(window, match))
        return self._answer(batch_id, found)

    def _long_match(self, version: str, match: Match, arrays: Arrays) -> Match | None:
        before = [
            (w, a) for w, a in list(self._recent)[1 - LONG :] if w.version == version and w.regime == match.reference_id
        ]
        if len(before) < LONG - 1:
            return None
        return best_match(self._references[version].values(), joined([*(a for _, a in before), arrays]))

    def _remember(self, window: Window, arrays: Arrays) -> None:
        if len(self._windows) == KEPT_WINDOWS:
            for item in self._windows[0].answers:
                self._by_item.pop(item, None)
        self._windows.append(window)
        self._recent.append((window, arrays))
        self._by_item.update(dict.fromkeys(window.answers, window))

    def _evaluated(self, window: Window, arrays: Arrays, when: datetime) -> WindowEvaluated:
        match = window.match
        confidence = float(arrays[PROBABILITIES].max(axis=1).mean()) if PROBABILITIES in arrays else 0.0
        return WindowEvaluated(
            model_name=self.model_name,
            model_version=window.version,
            window_id=window.window_id,
            number=window.number,
            window_start=when,
            window_end=when,
            items=len(window.answers),
            status="warmup" if match is None else "flagged" if window.flagged else "ok",
            drift_score=match.score if match else 0.0,
            drift_type=match.test if match else "",
            p_value=match.p_value if match else 1.0,
            reference_id=match.reference_id if match else "",
            regime=match.regime if match else "",
            scores=match.scores if match else {},
            confidence=min(1.0, confidence),
        )

    def _drift_change(self, window: Window, match: Match) -> Iterator[Event]:
        change = self._drift.feed(window.number, window.flagged)
        if change == "opened":
            self._critical = self._breach.is_open
            yield self._detected(window, match, "opened")
        elif change == "resolved":
            yield DriftResolved(
                model_name=self.model_name,
                model_version=window.version,
                episode_id=self._drift_episode,
                window_id=window.window_id,
                window_number=window.number,
                windows=window.number - self._drift.first + 1,
                reference_id=match.reference_id,
                regime=match.regime,
            )

    def _detected(self, window: Window, match: Match, state: str) -> DriftDetected:
        return DriftDetected(
            model_name=self.model_name,
            drift_score=match.scores.get(match.test, match.score),
            drift_type=match.test,
            model_version=window.version,
            p_value=match.p_value,
            severity="critical" if self._critical else "warning",
            state="escalated" if state == "escalated" else "opened",
            episode_id=self._drift_episode,
            window_id=window.window_id,
            window_number=window.number,
            first_window=self._drift.first,
            reference_id=match.reference_id,
        )

    @property
    def _drift_episode(self) -> str:
        return f"{self.model_name}/drift/{self._drift.opened}"

    # --- labels --------------------------------------------------------------------------------------------------

    def label(self, batch_id: str, labels: Mapping[str, int]) -> tuple[Event, ...]:
        """Join labels with answers. Returns metric.reported for every window they belong to, and what follows."""
        known = self.repeated(batch_id)
        if known is not None:
            return known
        by_window: OrderedDict[int, tuple[Window, list[bool]]] = OrderedDict()
        for item, label in labels.items():
            window = self._by_item.get(item)
            if window is None:
                self.dropped_labels += 1
                continue
            by_window.setdefault(window.number, (window, []))[1].append(window.answers[item] == label)
        found: list[Event] = []
        for window, right in by_window.values():
            found.extend(self._judge(window, len(right), sum(right)))
        return self._answer(batch_id, found)

    def _judge(self, window: Window, items: int, correct: int) -> Iterator[Event]:
        yield MetricReported(
            model_name=self.model_name,
            metric=METRIC,
            value=correct / items,
            items=items,
            model_version=window.version,
            window_id=window.window_id,
            labels={"regime": window.match.regime if window.match else ""},
        )
        newest = self._windows[-1]
        bar = self._bar(window)
        if bar is None or window.version != newest.version or window.regime != newest.regime:
            return
        labelled = Labelled(
            number=window.number,
            window_id=window.window_id,
            version=window.version,
            regime=window.regime,
            items=items,
            correct=correct,
            bar=bar[1],
        )
        verdict = self._quality.judge(labelled)
        was_open = self._breach.is_open
        if not was_open or verdict.breached or verdict.calm:
            change = self._breach.feed(window.number, verdict.breached)
            if change == "resolved":
                yield self._recovered(labelled)
        if verdict.breached:
            yield self._breached(labelled, verdict, bar[0], reminder=was_open)
            if self._drift.is_open and not self._critical and newest.match is not None:
                self._critical = True
                yield self._detected(newest, newest.match, "escalated")

    def _bar(self, window: Window) -> tuple[Reference, float] | None:
        """The reference that sets the bar, and the bar: what the matched reference reached, but not much less than the
        best one. (A model that was retrained too early has a poor reference of its own; measured against that, it would
        stay poor for good.) A window that matches nothing is measured against the best."""
        judged = [r for r in self._references.get(window.version, {}).values() if r.items]
        if not judged:
            return None
        best = max(judged, key=lambda r: r.accuracy)
        matched = next((r for r in judged if r.reference_id == window.regime), best)
        if matched.accuracy >= best.accuracy - TOLERATED:
            return matched, matched.accuracy
        return best, best.accuracy - TOLERATED

    def _breached(self, window: Labelled, verdict: Verdict, bar: Reference, *, reminder: bool) -> Event:
        return MetricThresholdBreached(
            model_name=self.model_name,
            metric=METRIC,
            value=verdict.correct / verdict.items,
            bound=window.bar,
            p_value=verdict.p_value,
            items=verdict.items,
            model_version=window.version,
            window_id=window.window_id,
            window_number=window.number,
            first_window=verdict.first,
            reference_id=bar.reference_id,
            episode_id=self._breach_episode,
            reminder=reminder,
        )

    def _recovered(self, window: Labelled) -> Event:
        return MetricRecovered(
            model_name=self.model_name,
            metric=METRIC,
            value=window.accuracy,
            bound=window.bar,
            model_version=window.version,
            window_id=window.window_id,
            window_number=window.number,
            episode_id=self._breach_episode,
        )

    @property
    def _breach_episode(self) -> str:
        return f"{self.model_name}/{METRIC}/{self._breach.opened}"

    # --- repetitions ---------------------------------------------------------------------------------------------

    def _answer(self, batch_id: str, found: list[Event]) -> tuple[Event, ...]:
        answer = tuple(found)
        if batch_id:
            self._answered[batch_id] = answer
            while len(self._answered) > KEPT_WINDOWS:
                self._answered.popitem(last=False)
        return answer

    def __repr__(self) -> str:
        return (
            f"<Monitor {self.model_name}: {self._numbers} windows, drift {'open' if self._drift.is_open else 'ok'}, "
            f"accuracy {'breached' if self._breach.is_open else 'ok'}>"
        )
