"""What labels mean for a window that is closed: answers in, events out. No I/O.

A window is judged by the reference that it matched, and only while the newest one still matches the same: see
`monitoring.quality`, which has the measurements. A loss of quality that no input test sees is critical by itself.
"""

from collections.abc import Iterable, Iterator

from canvasbus import Event
from canvasbus.events import DriftDetected, DriftResolved, MetricRecovered, MetricReported, MetricThresholdBreached
from canvasbus_workers.drift.book import Closed, Ledger, episode_id
from canvasbus_workers.monitoring import Episode, Policy
from canvasbus_workers.monitoring.quality import Finding, Labelled, bar
from canvasbus_workers.naming import name_of

METRIC = "accuracy"


def labelled(
    model: str,
    ledger: Ledger,
    window: Closed,
    wrong: Iterable[bool],
    policy: Policy,
    label_items: int,
) -> Iterator[Event]:
    """Labels have come for answers of a window. They are judged as soon as there are enough of its kind, by the window that
    the last of them belong to: metric.reported, and what follows from it."""
    kind = name_of(window.version, window.kind)
    together = [*ledger.tallies.pop(kind, ()), *wrong]
    if len(together) < label_items:
        ledger.tallies[kind] = together
        return
    items, errors = len(together), sum(together)
    yield MetricReported(
        model_name=model,
        metric=METRIC,
        value=(items - errors) / items,
        items=items,
        model_version=window.version,
        window_id=window.window_id,
        labels={"regime": window.regime} | ({"segment": window.segment} if window.segment else {}),
    )
    newest = ledger.newest
    least = bar(ledger.promised.get(window.kind), ledger.promised.values())
    if newest is None or least is None or window.version != newest.version or window.kind != newest.kind:
        return
    version, regime = name_of(window.version), name_of(window.kind)  # 256 of each are kept
    judged = Labelled(window.number, version, regime, items, items - errors, least)
    finding = ledger.quality.judge(judged)
    yield from _accuracy_changed(model, ledger.breach, window, judged, finding, policy)
    changed = ledger.quality.advance(version, together, policy)
    yield from _errors_changed(model, ledger.errors, window, judged, changed, finding.calm, policy)


def _accuracy_changed(
    model: str, episode: Episode, window: Closed, judged: Labelled, finding: Finding, policy: Policy
) -> Iterator[Event]:
    was_open = episode.is_open
    change = episode.feed(
        window.number, flagged=finding.breached, calm=finding.calm, effect=0.0, policy=_at_once(policy)
    )
    name = episode_id(model, window.segment, METRIC, episode.opened)
    if change == "resolved":
        yield MetricRecovered(
            model_name=model,
            metric=METRIC,
            value=judged.accuracy,
            bound=judged.bar,
            model_version=window.version,
            window_id=window.window_id,
            window_number=window.number,
            episode_id=name,
            segment=window.segment,
        )
    if finding.breached:
        yield MetricThresholdBreached(
            model_name=model,
            metric=METRIC,
            value=finding.correct / finding.items,
            bound=judged.bar,
            p_value=finding.p_value,
            items=finding.items,
            model_version=window.version,
            window_id=window.window_id,
            window_number=window.number,
            first_window=finding.first,
            reference_id=window.kind,
            episode_id=name,
            reminder=was_open,
            segment=window.segment,
        )


def _errors_changed(
    model: str, episode: Episode, window: Closed, judged: Labelled, changed: bool, calm: bool, policy: Policy
) -> Iterator[Event]:
    change = episode.feed(window.number, flagged=changed, calm=calm, effect=0.0, policy=_at_once(policy))
    name = episode_id(model, window.segment, "errors", episode.opened)
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
            episode_id=name,
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
            episode_id=name,
            window_id=window.window_id,
            window_number=window.number,
            windows=window.number - episode.first + 1,
            reference_id=window.reference_id,
            regime=window.regime,
        )


def _at_once(policy: Policy) -> Policy:
    """One finding opens: it is significant at .001, or fired by itself. Reminders are the breach's own."""
    return Policy(enter=1, within=1, leave=policy.leave, repeat_windows=0)
