"""One metric of one model and segment: its reports in the order of their own time, and where each rule stands. No I/O.

    settled ···│ recent, sorted ·· newest
            horizon = newest − late_seconds

Reports come late and out of order, so judging is a fold over what is recent, sorted, from where each rule stood at the
horizon: which order they came in makes no difference. Nothing waits for that: each report is judged at once, with those
that are there, and what was told is not taken back. A report from before the horizon is counted and changes nothing.
"""

from bisect import bisect_right, insort
from collections.abc import Mapping
from hashlib import blake2b
from typing import Literal

import msgspec
from msgspec import Struct

from canvasbus_workers.metrics.rules import Rule
from canvasbus_workers.naming import name_of

MOST_RECENT = 500
"""Recent reports of a series that are kept: with more of them the horizon moves up."""
STEPS = 100
"""Points of the past that are kept for a change over some time: one for each hundredth of it."""


class Point(Struct, array_like=True, frozen=True):
    """One report."""

    at: float
    """Seconds since 1970, of the report itself."""
    value: float
    items: int = 0
    version: str = ""
    window_id: str = ""


class Course(Struct, array_like=True):
    """Where a rule stands."""

    broken: float | None = None
    """Since when every report broke the bound; None: the last one did not."""
    calm: float | None = None
    """Since when every report would end a breach."""

    def step(self, rule: Rule, point: Point, quantity: float) -> None:
        """The next report, in order of time."""
        if rule.broken(quantity) is None:
            self.broken = None
        elif self.broken is None:
            self.broken = point.at
        if not rule.calm(quantity):
            self.calm = None
        elif self.calm is None:
            self.calm = point.at


class Open(Struct, array_like=True):
    """A breach that has been told and not ended."""

    episode_id: str
    told: float
    """When last, by the time of reports."""


class Judgement(Struct, frozen=True):
    """What a rule finds in a series."""

    rule: str
    point: Point
    """The newest report."""
    quantity: float
    change: Literal["opened", "reminder", "recovered"]
    episode_id: str


class Series(Struct):
    """What is known of a metric. Changes in place."""

    serial: int = 0
    """Reports that counted."""
    late: int = 0
    """Reports that came after the horizon had passed them."""
    arrived: float = 0.0
    """When the last one that counted came, by this side's clock."""
    horizon: float = 0.0
    """Reports up to here are settled."""
    recent: list[Point] = msgspec.field(default_factory=list)
    """After the horizon, sorted; the newest is always among them."""
    past: list[Point] = msgspec.field(default_factory=list)
    """Thinned, for changes over time; older than the horizon."""
    courses: dict[str, Course] = msgspec.field(default_factory=dict)
    """Rule → where it stood at the horizon."""
    broken: dict[str, Open] = msgspec.field(default_factory=dict)
    """Rule → its breach of a bound."""
    absent: dict[str, Open] = msgspec.field(default_factory=dict)
    """Rule → its breach by silence."""

    @property
    def newest(self) -> Point | None:
        """The report with the latest time."""
        return self.recent[-1] if self.recent else None

    def add(self, point: Point, now: float) -> bool:
        """A report has come; False: too late."""
        if self.horizon > now:
            self._back_to(now)
        if point.at <= self.horizon and (self.newest is None or point.at < self.newest.at):
            self.late += 1
            return False
        if point not in self.recent:
            insort(self.recent, point, key=lambda point: point.at)  # of one moment: as they came
        self.serial += 1
        self.arrived = now
        return True

    def _back_to(self, now: float) -> None:
        """The clock was ahead, and is not any more: what came in the time that it went back is of now, as reports from the
        future are. Else all that comes would be late until the clock is there again."""
        self.horizon = now
        self.recent, self.past = (
            [msgspec.structs.replace(point, at=min(point.at, now)) for point in points]
            for points in (self.recent, self.past)
        )
        for course in self.courses.values():
            course.broken = None if course.broken is None else min(course.broken, now)
            course.calm = None if course.calm is None else min(course.calm, now)
        for is_open in (*self.broken.values(), *self.absent.values()):
            is_open.told = min(is_open.told, now)

    def judge(self, rules: Mapping[str, Rule], name: str) -> list[Judgement]:
        """What the rules, all of them for this series, find now. `name` tells this series from others, for ids."""
        found = []
        for rule_name, rule in rules.items():
            if rule.bounded and (judged := self._judge(rule_name, rule, name)) is not None:
                found.append(judged)
        return found

    def _judge(self, rule_name: str, rule: Rule, name: str) -> Judgement | None:
        before = self.courses.get(rule_name, Course())
        course = Course(before.broken, before.calm)
        quantity = None
        for point in self.recent:
            quantity = self.quantity(rule, point)
            if quantity is not None:
                course.step(rule, point, quantity)
        if quantity is None:
            return None  # nothing to compare the newest with yet
        newest = self.recent[-1]
        is_open = self.broken.get(rule_name)
        if course.broken is not None and newest.at - course.broken >= rule.for_seconds:
            if is_open is None:
                is_open = Open(episode_id(name, course.broken, self.serial, rule_name), newest.at)
                self.broken[rule_name] = is_open
                return Judgement(rule_name, newest, quantity, "opened", is_open.episode_id)
            if 0 < rule.repeat_seconds <= newest.at - is_open.told:
                is_open.told = newest.at
                return Judgement(rule_name, newest, quantity, "reminder", is_open.episode_id)
        elif is_open and course.calm is not None and newest.at - course.calm >= rule.recover_for_seconds:
            del self.broken[rule_name]
            return Judgement(rule_name, newest, quantity, "recovered", is_open.episode_id)
        return None

    def quantity(self, rule: Rule, point: Point) -> float | None:
        """What the rule's bounds are for; None: it is too early to say."""
        if rule.of == "value":
            return point.value
        then = self._at(point.at - rule.over_seconds)
        if then is None:
            return None
        change = point.value - then.value
        if rule.of == "change":
            return change
        return change / abs(then.value) if then.value else None

    def _at(self, moment: float) -> Point | None:
        """The last report up to a moment."""
        for points in (self.recent, self.past):
            at = bisect_right(points, moment, key=lambda point: point.at)
            if at:
                return points[at - 1]
        return None

    def settle(self, rules: Mapping[str, Rule], late_seconds: float) -> None:
        """Move the horizon on: what is older can no longer change."""
        if not self.recent:
            return
        horizon = self.recent[-1].at - late_seconds
        if len(self.recent) > MOST_RECENT:
            horizon = max(horizon, self.recent[-MOST_RECENT - 1].at)
        count = min(bisect_right(self.recent, horizon, key=lambda point: point.at), len(self.recent) - 1)
        over = max((rule.over_seconds for rule in rules.values() if rule.of != "value"), default=0.0)
        self.courses = {name: self.courses.get(name, Course()) for name, rule in rules.items() if rule.bounded}
        for point in self.recent[:count]:
            for name, course in self.courses.items():
                quantity = self.quantity(rules[name], point)
                if quantity is not None:
                    course.step(rules[name], point, quantity)
        for point in self.recent[:count]:
            if over and (not self.past or point.at - self.past[-1].at >= over / STEPS):
                self.past.append(point)
        self.horizon = max(self.horizon, horizon)
        del self.recent[:count]
        oldest = bisect_right(self.past, self.recent[0].at - over, key=lambda point: point.at)
        del self.past[: max(0, oldest - 1) if over else len(self.past)]

    def is_missing(self, rule: str, serial: int, name: str) -> str | None:
        """Nothing has come since the report number `serial`: the new episode's id; None: it has, or that is known."""
        if self.serial != serial or rule in self.absent or (newest := self.newest) is None:
            return None
        self.absent[rule] = Open(episode_id(name, newest.at, self.serial, rule, "absent"), newest.at)
        return self.absent[rule].episode_id

    def come_back(self) -> list[tuple[str, str]]:
        """(rule, episode) of each silence that has ended."""
        found = [(name, one.episode_id) for name, one in sorted(self.absent.items())]
        self.absent.clear()
        return found

    def left_over(self, rules: Mapping[str, Rule]) -> list[tuple[str, str]]:
        """(rule, episode) of what no rule is there for any more, ended."""
        gone = sorted(self.broken.keys() - {name for name, rule in rules.items() if rule.bounded})
        return [(name, self.broken.pop(name).episode_id) for name in gone]


def episode_id(series: str, since: float, serial: int, *rule: str) -> str:
    """The same for the same breach, whoever finds it, and never that of another one: several may begin in one moment, by
    the time of the reports. `serial`: how many reports there were when it was found."""
    digest = blake2b(f"{series} {since!r} {serial}".encode(), digest_size=8).hexdigest()
    return name_of("metrics", *rule, digest)
