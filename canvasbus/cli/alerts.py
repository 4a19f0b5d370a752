"""canvasbus alerts status | test"""

import argparse
from typing import Any

from canvasbus import clock
from canvasbus.cli.context import Context
from canvasbus.cli.output import NOTHING, Cell, Column, Output, ago, between_words, safe
from canvasbus.cli.silence import say_waiting
from canvasbus.config import FILE
from canvasbus.operate.alerts import GROUP, desk
from canvasbus.operate.plugins import beside, misspelt
from canvasbus.operate.steering import is_idle

DESTINATIONS = (
    Column("DESTINATION"),
    Column("STATE"),
    Column("TOLD", right=True),
    Column("NOT TOLD", right=True),
    Column("WHY", flexible=True),
)
_SEVERITIES = ("critical", "warning", "info")
_STYLES = {"critical": "bold red", "warning": "yellow", "info": "dim"}


def run_status(context: Context, _: argparse.Namespace) -> int:
    """0, whatever is open."""
    now, out = clock.time(), context.out
    found = context.link.run(desk(context.partitions))
    names = sorted({*found.told, *found.suppressed, *found.disabled})
    if out.json:
        for incident_id, case in found.cases.items():
            out.record({"incident_id": incident_id, **_for_machines(case)})
        for name in names:
            out.record(_destination_for_machines(name, found, now))
        return 0
    open_ = [(incident_id, case) for incident_id, case in found.cases.items() if not case.over]
    for incident_id, case in sorted(open_, key=lambda item: (_SEVERITIES.index(item[1].severity), item[1].since)):
        _show(out, incident_id, case, now)
    if names:
        out.table(DESTINATIONS, [_destination(name, found, now) for name in names])
    out.flush()
    silences = sum(1 for one in found.silences.values() if not one.until or one.until > now)
    out.note(f"{_count(len(open_), 'open incident')}, {_count(silences, 'silence')} in {context.where}")
    say_waiting(context)
    if context.link.run(is_idle(context.partitions, GROUP)):
        out.note("no alerts worker is there: nobody is told of anything (canvasbus-worker alerts)")
    return 0


def run_test(context: Context, _: argparse.Namespace) -> int:
    """1 when one failed."""
    failed, loaded = False, context.loaded
    sent = beside("alerts", "sampling").send_samples(loaded)
    if not loaded.workers.get(GROUP, {}).get("destinations"):
        context.out.note(
            f"no [workers.alerts.destinations.NAME] in {loaded.file or FILE}: the log is the only destination"
        )
        for table, meant in misspelt(loaded.workers, [GROUP]):
            context.out.note(f"nobody reads [workers.{table}]: did you mean {meant}?")
    for name, error in sent:
        failed = failed or error is not None
        if context.out.json:
            context.out.record({"destination": name, "ok": error is None, "error": error})
        else:
            word = context.out.paint("ok", "green") if error is None else context.out.paint("failed", "red")
            context.out.line(f"{safe(name)}: {word}" + (f": {safe(error)}" if error else ""))
    return 1 if failed else 0


def _show(out: Output, incident_id: str, case: Any, now: float) -> None:
    """One incident: how grave, since when, who knows; then a line for each of its signals, the newest first."""
    severity = out.paint(f"{case.severity:<8}", _STYLES.get(case.severity, ""))
    out.line(f"{severity}  {out.paint(safe(_name(incident_id)), 'bold')}  for {ago(now - case.since.timestamp())}")
    told = f"told: {', '.join(case.told) or 'nobody'}"
    held = ", ".join(f"{name or 'nobody'} ({words.rpartition(' ')[2]})" for name, words in sorted(case.muted.items()))
    out.wrapped(f"{told}; not told: {held}" if held else told, indent=4)
    if case.title not in case.summary:  # of what has become quiet, or of one that is older than all that are named
        out.wrapped(f"- {_marked(case.title)}", indent=4)
    for name, line in zip(case.signals, case.summary, strict=False):
        out.wrapped(f"- {_marked(line)} ({name})", indent=4)
    if case.ringing > len(case.signals):
        out.line(f"    - and {_count(case.ringing - len(case.signals), 'older signal')}")
    out.line()


def _name(incident_id: str) -> str:
    """Without a model it is the bus's own: handlers that give up, losses."""
    bare = incident_id.removeprefix("model_name=/")
    return incident_id if bare == incident_id else f"the bus/{bare}"


def _marked(line: str) -> str:
    """A line that the worker has cut to fit ends between two words, and says so."""
    longest = beside(GROUP, "incidents").LINE - (
        0 if line.isascii() else 3
    )  # bytes: a character may have been cut in two
    return f"{between_words(line)}…" if len(line.encode()) >= longest else line


def _destination(name: str, found: Any, now: float) -> tuple[Cell | str, ...]:
    reasons = found.suppressed.get(name, {})
    why = ", ".join(f"{reason} {count:,}" for reason, count in sorted(reasons.items()))
    told = f"{found.told.get(name, 0):,}"
    return name or "nobody", _state(name, found, now), told, f"{sum(reasons.values()):,}", why or NOTHING


def _state(name: str, found: Any, now: float) -> Cell:
    """What is the matter with a destination now."""
    if not name:
        return Cell(NOTHING)
    gone = found.disabled.get(name, 0.0) - now
    if gone > 0:
        return Cell(f"gone (410), left alone for {ago(gone)}", "red")
    waits = found.waiting(name)
    empty = found.buckets[name].empty_until - now if name in found.buckets else 0.0
    if waits or empty > 0:
        return Cell(f"no token for {ago(max(empty, 0.0))}" + (f", {waits} wait" if waits else ""), "yellow")
    return Cell("ready")


def _destination_for_machines(name: str, found: Any, now: float) -> dict[str, object]:
    until = found.disabled.get(name, 0.0)
    empty = found.buckets[name].empty_until if name in found.buckets else 0.0
    return {
        "destination": name or None,
        "told": found.told.get(name, 0),
        "suppressed": found.suppressed.get(name, {}),
        "disabled": until > now,
        "disabled_until": until if until > now else None,
        "no_token_until": empty if empty > now else None,
        "waiting": found.waiting(name),
    }


def _for_machines(case: Any) -> dict[str, object]:
    return {
        "model_name": case.model_name,
        "severity": case.severity,
        "title": case.title,
        "signals": case.signals,
        "summary": case.summary,
        "ringing": max(case.ringing, len(case.signals)),
        "since": case.since,
        "over": case.over,
        "told": list(case.told),
        "not_told": {name: words.rpartition(" ")[2] for name, words in case.muted.items()},
    }


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
