"""One series of a metric under rules: tables, and a random one against a model that keeps everything and sorts it."""

import random
from typing import Any

import pytest
from seeds import RUN_SEED

from canvasbus.errors import ConfigError
from canvasbus_workers.metrics.rules import Rule, place_of, read_rules
from canvasbus_workers.metrics.series import MOST_RECENT, Point, Series


def told(rule: Rule, points: list[tuple[float, float]], late: float = 60.0) -> list[tuple[str, float]]:
    """(what, at which report) for reports (time, value) in the order in which they come."""
    series, found = Series(), []
    for at, value in points:
        if series.add(Point(1000 + at, value), 1000 + at):
            found += [(judged.change, at) for judged in series.judge({"r": rule}, "s")]
            series.settle({"r": rule}, late)
    return found


FAR = Rule(metric="m", min=0.8, recover_min=0.9)
SLOW = Rule(metric="m", min=0.8, for_seconds=30, recover_for_seconds=20)


@pytest.mark.parametrize(
    ("rule", "points", "expected"),
    [
        (Rule(metric="m", max=5), [(0, 5), (1, 5.1), (2, 6), (3, 5)], [("opened", 1), ("recovered", 3)]),
        (Rule(metric="m", min=5), [(0, 5), (1, 4.9), (2, 5)], [("opened", 1), ("recovered", 2)]),
        (Rule(metric="m", min=1, max=2), [(0, 0), (1, 3), (2, 1.5)], [("opened", 0), ("recovered", 2)]),
        (FAR, [(0, 0.7), (1, 0.85), (2, 0.79), (3, 0.89), (4, 0.9)], [("opened", 0), ("recovered", 4)]),
        (SLOW, [(0, 0.7), (29, 0.7), (30, 0.7)], [("opened", 30)]),
        (SLOW, [(0, 0.7), (20, 0.8), (40, 0.7), (69, 0.7), (70, 0.7)], [("opened", 70)]),
        (
            SLOW,
            [(0, 0.7), (30, 0.7), (40, 0.9), (50, 0.7), (55, 0.9), (74, 0.9), (75, 0.9)],
            [("opened", 30), ("recovered", 75)],
        ),
        (
            Rule(metric="m", max=1, repeat_seconds=60),
            [(0, 2), (59, 2), (60, 2), (119, 2), (121, 2)],
            [("opened", 0), ("reminder", 60), ("reminder", 121)],
        ),
        # a change: nothing is said before there is something to compare with
        (
            Rule(metric="m", of="change", over_seconds=60, min=-0.1),
            [(0, 0.9), (30, 0.5), (60, 0.85), (65, 0.75), (130, 0.75)],
            [("opened", 65), ("recovered", 130)],
        ),
        (
            Rule(metric="m", of="relative_change", over_seconds=10, max=0.5),
            [(0, 2), (10, 3), (15, 3.1), (20, 3.2)],
            [("opened", 15), ("recovered", 20)],
        ),
        (Rule(metric="m", of="relative_change", over_seconds=10, max=0.5), [(0, 0), (10, 3)], []),
        # a good report that comes late lies between the bad ones: they are no 30 seconds
        (SLOW, [(0, 0.7), (20, 0.7), (10, 0.9), (35, 0.7), (50, 0.7)], [("opened", 50)]),
        # a bad one that comes late makes the time full
        (SLOW, [(0, 0.7), (31, 0.7)], [("opened", 31)]),
        (SLOW, [(20, 0.7), (31, 0.7), (0, 0.7)], [("opened", 0)]),
        # reports of one moment count in the order in which they come
        (Rule(metric="m", max=1), [(0, 2), (0, 1), (0, 3)], [("opened", 0), ("recovered", 0), ("opened", 0)]),
        # older than late_seconds: not judged any more
        (SLOW, [(100, 0.7), (129, 0.7), (20, 0.7)], []),
    ],
)
def test_what_a_rule_tells(rule: Rule, points: list[tuple[float, float]], expected: list[tuple[str, float]]) -> None:
    """Bounds, the time for which, hysteresis, reminders, changes, and reports that come late."""
    assert told(rule, points) == expected


def test_an_episode_has_one_id_from_evidence() -> None:
    """It is made of the series, the rule and the report with which the breach began: whoever finds it, the same."""

    def ids(name: str = "s", start: float = 0.0) -> list[str]:
        series, found = Series(), []
        for at, value in ((0.0, 2.0), (60.0, 2.0), (61.0, 0.0), (62.0, 2.0)):
            series.add(Point(1000 + start + at, value), 0)
            found += series.judge({"r": Rule(metric="m", max=1, repeat_seconds=60)}, name)
            series.settle({}, 60)
        return [judged.episode_id for judged in found]

    opened, reminder, recovered, again = ids()
    assert opened == reminder == recovered != again
    assert ids() == [opened, reminder, recovered, again]
    assert opened not in ids("another") and opened not in ids(start=1.0)


def naive(rule: Rule, points: list[Point]) -> tuple[bool, bool]:
    """(broken for long enough, calm for long enough) by all points."""
    ordered = sorted(points, key=lambda point: point.at)

    def value(at: int) -> float | None:
        if rule.of == "value":
            return ordered[at].value
        before = [p for p in ordered if p.at <= ordered[at].at - rule.over_seconds]
        return ordered[at].value - before[-1].value if before else None

    def lasts(so: Any, seconds: float) -> bool:
        since = None
        for at in range(len(ordered)):
            quantity = value(at)
            if quantity is not None:
                since = (ordered[at].at if since is None else since) if so(quantity) else None
        return since is not None and ordered[-1].at - since >= seconds

    if value(len(ordered) - 1) is None:
        return False, False
    return lasts(lambda q: rule.broken(q) is not None, rule.for_seconds), lasts(rule.calm, rule.recover_for_seconds)


@pytest.mark.parametrize("number", range(60))
def test_the_order_in_which_reports_come_makes_no_difference(number: int) -> None:
    """Reports that are late by up to late_seconds, some twice, with the series stored and loaded in between: each
    judgement is that of a model which keeps all of them and sorts. (of="change" within late_seconds, where nothing of
    the past has been thinned yet.)"""
    import msgspec

    draw = random.Random(f"{RUN_SEED}/{number}")
    of = draw.choice(["value", "change"])
    rule = Rule(
        metric="m",
        of=of,  # type: ignore[arg-type]
        over_seconds=7.0,
        max=0.6,
        recover_max=draw.choice([0.6, 0.3]),
        for_seconds=draw.choice([0.0, 5.0, 12.0]),
        recover_for_seconds=draw.choice([0.0, 6.0]),
    )
    late = draw.choice([10.0, 30.0]) if of == "value" else 10_000.0
    times = sorted(draw.uniform(1000, 1200) for _ in range(120))
    level = [draw.choice([0.1, 0.9]) for _ in range(12)]
    points = [Point(at, level[int((at - 1000) / 17)] + draw.uniform(-0.25, 0.25)) for at in times]
    coming = sorted(points + draw.sample(points, 10), key=lambda point: point.at + draw.uniform(0, min(late, 30) - 1))
    series, seen, is_open = Series(), [], False
    for point in coming:
        assert series.add(point, point.at), f"seed {RUN_SEED}, {number}"
        seen += [point] if point not in seen else []
        changes = [judged.change for judged in series.judge({"r": rule}, "s")]
        series.settle({"r": rule}, late)
        series = msgspec.msgpack.decode(msgspec.msgpack.encode(series), type=Series)
        broken, calm = naive(rule, seen)
        expected = ["opened"] if broken and not is_open else ["recovered"] if is_open and calm and not broken else []
        assert changes == expected, f"seed {RUN_SEED}, {number}, report at {point.at}"
        is_open = is_open != bool(changes)


def test_a_timer_that_was_overtaken_is_void() -> None:
    """It was published already when a report came: nothing is missing. One that comes twice finds it told."""
    series = Series()
    series.add(Point(1000, 1), 1000)
    before = series.serial
    series.add(Point(1010, 1), 1010)
    assert series.is_missing("r", before, "s") is None
    episode = series.is_missing("r", series.serial, "s")
    assert episode is not None and series.is_missing("r", series.serial, "s") is None
    assert series.come_back() == [("r", episode)] and series.come_back() == []


def test_a_busy_series_stays_small() -> None:
    """Ten thousand reports within late_seconds, and a change over them: what is kept has a bound."""
    rules = {"r": Rule(metric="m", of="change", over_seconds=900, max=1)}
    series = Series()
    for at in range(10_000):
        assert series.add(Point(1000 + at / 10, 0.5), 0)
        series.judge(rules, "s") if at % 1000 == 0 else None
        series.settle(rules, 3600)
    assert len(series.recent) <= MOST_RECENT + 1 and len(series.past) <= 110
    assert series.quantity(rules["r"], series.recent[-1]) == 0.0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"metric": "m"}, "give min, max or absent_seconds"),
        ({"metric": "m", "maximum": 3}, "unknown key 'maximum'; did you mean max?"),
        ({"max": 3}, "Object missing required field `metric`"),
        ({"metric": "m", "max": "3"}, "max: expected float | null, got str"),
        ({"metric": "m", "max": 3, "min": 4}, "min = 4 lies above max = 3"),
        ({"metric": "m", "max": 3, "recover_max": 4}, "recover_max = 4 lies above max = 3"),
        ({"metric": "m", "max": 3, "recover_min": 4}, "recover_min needs min"),
        ({"metric": "m", "min": 0, "max": 9, "recover_min": 6, "recover_max": 5}, "no value ends a breach"),
        ({"metric": "m", "max": 3, "for_seconds": -1}, "for_seconds: expected float >= 0"),
        ("max = 3", "this is to be a table"),
    ],
)
def test_a_rule_that_makes_no_sense_says_why(table: Any, said: str) -> None:
    """The rule, the key, and what is wrong."""
    with pytest.raises(ConfigError) as caught:
        read_rules({"r": table}, place_of)
    assert str(caught.value).startswith(f"[workers.metrics.rules.r]: {said}")


def test_a_clock_that_goes_back_makes_nobody_late() -> None:
    """It was an hour ahead, in mid-breach: the next report counts, and ends it; times are counted from then."""
    rules = {"r": Rule(metric="m", max=1, for_seconds=30, recover_for_seconds=30)}
    series, found = Series(), []
    for at, value in (
        (7200, 2),
        (7260, 2),
        (7400, 2),
        (3600, 0),
        (3629, 0),
        (3630, 0),
        (3640, 2),
        (3669, 2),
        (3670, 2),
    ):
        assert series.add(Point(at, value), at)
        found += [(judged.change, at) for judged in series.judge(rules, "s")]
        series.settle(rules, 60)
    assert found == [("opened", 7260), ("recovered", 3630), ("opened", 3670)]
