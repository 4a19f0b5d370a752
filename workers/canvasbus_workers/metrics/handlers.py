"""What the metrics worker listens to.

A series (model, metric, segment) is one state, so any number of processes share the work: what one has judged the next
one goes on from, a report that is delivered again finds itself judged, and a worker that is killed costs nothing.
Silence is noticed by a durable timer for each rule that asks for it, which every report sets anew.
"""

from collections.abc import AsyncIterator, Sequence

import structlog

from canvasbus import Event, clock
from canvasbus.events import MetricReported
from canvasbus.worker import Context, Later, State, Worker, section
from canvasbus_workers.metrics import telling
from canvasbus_workers.metrics.edge import Rules
from canvasbus_workers.metrics.events import ReportDue
from canvasbus_workers.metrics.series import Point, Series
from canvasbus_workers.metrics.settings import Settings
from canvasbus_workers.naming import name_of

worker = Worker("metrics")


@worker.lifespan
async def open_rules() -> AsyncIterator[Rules]:
    """Rules that make no sense end it before it has begun; none at all are told: they may come while it runs."""
    rules = Rules(lambda: section("metrics", Settings))
    if not rules.rules:
        places = f"[workers.metrics.rules.NAME]{f' and {file}' if (file := rules.settings.rules_file) else ''}"
        structlog.get_logger("canvasbus.metrics").warning(f"no rules in {places}: nothing is judged")
    yield rules


@worker.on(MetricReported)
async def judge(event: MetricReported, ctx: Context) -> Sequence[Event | Later]:
    """Judge a report by the rules that are about it, and expect the next one."""
    rules = _refreshed(ctx)
    model, metric, segment = event.model_name, event.metric, event.labels.get("segment", "")
    about = rules.about(model, metric, segment)
    name = _name(model, metric, segment)
    if not about and not rules.was_about(model, metric, segment) and rules.is_at_rest(name):
        return ()
    state = await _series(name, ctx)
    series = state.value
    if not about and not series.broken and not series.absent:
        rules.rests(name)
        if not state.exists:
            state.delete()  # a series that no rule is for leaves nothing on the server
        return ()
    # A clock that goes ahead would make everybody else's reports late ones. Both in whole microseconds, as events have
    # them: by the clock's own nanoseconds what is reported in the same microsecond could be the older one.
    now = clock.now()
    at = min(event.occurred_on, now).timestamp()
    point = Point(at, event.value, event.items, event.model_version, event.window_id)
    if not series.add(point, now.timestamp()):
        ctx.log.info("report is too late to be judged", model_name=model, metric=metric, late=series.late)
        return ()
    found: list[Event | Later] = []
    for gone, episode_id in series.come_back():
        allowed = about[gone].absent_seconds if gone in about else None
        found.append(telling.back(model, metric, segment, gone, allowed, point, episode_id))
    for gone, episode_id in series.left_over(about):
        found.append(telling.given_up(model, metric, segment, gone, point, episode_id))
    for judged in series.judge(about, name):
        found.append(telling.told(model, metric, segment, about[judged.rule], judged))
    series.settle(about, rules.settings.late_seconds)
    for rule_name, rule in about.items():
        if rule.absent_seconds:
            due = ReportDue(model_name=model, metric=metric, segment=segment, rule=rule_name, serial=series.serial)
            found.append(
                Later(due, after=rule.absent_seconds, timer=name_of("absent", model, metric, segment, rule_name))
            )
    return found


@worker.on(ReportDue)
async def on_due(event: ReportDue, ctx: Context) -> Event | None:
    """No report has come for as long as a rule allows; unless one has."""
    rules = _refreshed(ctx)
    rule = rules.about(event.model_name, event.metric, event.segment).get(event.rule)
    if rule is None or rule.absent_seconds is None:
        return None
    name = _name(event.model_name, event.metric, event.segment)
    series = (await _series(name, ctx)).value
    last = series.newest
    episode_id = series.is_missing(event.rule, event.serial, name)
    if last is None or episode_id is None:
        return None
    seconds = max(rule.absent_seconds, clock.time() - series.arrived)
    return telling.silent(event.model_name, event.metric, event.segment, event.rule, rule, seconds, last, episode_id)


def _refreshed(ctx: Context) -> Rules:
    rules: Rules = ctx.resources
    if rules.refresh():
        if rules.complaint:
            ctx.log.error("the rules are wrong now; the old ones stay in force", why=rules.complaint)
        else:
            ctx.log.info("new rules are in force", rules=len(rules.rules))
    return rules


async def _series(name: str, ctx: Context) -> State[Series]:
    rules: Rules = ctx.resources
    return await ctx.state(name, Series, ttl=rules.settings.keep_seconds)


def _name(model: str, metric: str, segment: str) -> str:
    return name_of("series", model, metric, segment)
