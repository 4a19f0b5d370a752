"""What a closed window means: verdict in, events out. No I/O.

Input drift alone is a warning: most of it costs nothing. It becomes critical when labels show that quality suffers.
"""

from collections.abc import Iterator, Sequence

from canvasbus import Event
from canvasbus.events import (
    DataQualityViolated,
    DriftDetected,
    DriftResolved,
    FeatureDrift,
    Severity,
    WindowEvaluated,
)
from canvasbus_workers.drift.book import Closed, Scope, Track, Window, episode_id
from canvasbus_workers.monitoring import Comparison, Episode, FeatureReport, Verdict
from canvasbus_workers.monitoring.episodes import Change
from canvasbus_workers.monitoring.expectations import Check, Violation

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
    return episode_id(scope.model, scope.segment, "drift", episode.opened)


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
