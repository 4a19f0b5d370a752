"""What the judgements on a series are called on the bus. No I/O."""

from typing import Any

from canvasbus.events import MetricRecovered, MetricThresholdBreached
from canvasbus_workers.metrics.rules import Rule
from canvasbus_workers.metrics.series import Judgement, Point


def told(
    model: str, metric: str, segment: str, rule: Rule, judged: Judgement
) -> MetricThresholdBreached | MetricRecovered:
    """A breach, a reminder of one, or its end."""
    point = judged.point
    if judged.change == "recovered":
        low, high = rule.recovers
        near = [bound for bound in (low, high) if bound is not None]
        return MetricRecovered(
            model_name=model,
            metric=metric,
            value=point.value,
            **_held(rule, judged.quantity, min(near, key=lambda bound: abs(bound - judged.quantity))),
            model_version=point.version,
            window_id=point.window_id,
            episode_id=judged.episode_id,
            rule=judged.rule,
            segment=segment,
        )
    broken = rule.broken(judged.quantity)
    assert broken is not None, "a breach is judged by its newest report"
    return MetricThresholdBreached(
        model_name=model,
        metric=metric,
        value=point.value,
        **_held(rule, judged.quantity, broken[1]),
        direction=broken[0],
        items=point.items,
        model_version=point.version,
        window_id=point.window_id,
        episode_id=judged.episode_id,
        severity=rule.severity,
        reminder=judged.change == "reminder",
        rule=judged.rule,
        segment=segment,
    )


def _held(rule: Rule, quantity: float, bound: float) -> dict[str, Any]:
    """What is held against what, each under its own name."""
    match rule.of:
        case "value":
            return {"bound": bound}
        case "change":
            found = {"change": quantity, "change_bound": bound}
        case "relative_change":
            found = {"relative_change": quantity, "relative_bound": bound}
    return {"condition": rule.of, "over_seconds": rule.over_seconds, **found}


def silent(
    model: str, metric: str, segment: str, name: str, rule: Rule, seconds: float, last: Point, episode_id: str
) -> MetricThresholdBreached:
    """Reports have stopped."""
    return MetricThresholdBreached(
        model_name=model,
        metric=metric,
        value=last.value,
        silent_seconds=seconds,
        allowed_seconds=rule.absent_seconds,
        direction="above",
        model_version=last.version,
        episode_id=episode_id,
        severity=rule.severity,
        rule=name,
        condition="absent",
        segment=segment,
    )


def back(
    model: str, metric: str, segment: str, name: str, allowed: float | None, point: Point, episode_id: str
) -> MetricRecovered:
    """Reports come again."""
    return MetricRecovered(
        model_name=model,
        metric=metric,
        value=point.value,
        allowed_seconds=allowed,
        model_version=point.version,
        episode_id=episode_id,
        rule=name,
        condition="absent",
        segment=segment,
    )


def given_up(model: str, metric: str, segment: str, name: str, point: Point, episode_id: str) -> MetricRecovered:
    """The rule was taken away while it was broken."""
    return MetricRecovered(
        model_name=model,
        metric=metric,
        value=point.value,
        model_version=point.version,
        episode_id=episode_id,
        rule=name,
        segment=segment,
    )
