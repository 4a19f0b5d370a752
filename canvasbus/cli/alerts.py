"""canvasbus alerts status | test"""

import argparse

from canvasbus import clock
from canvasbus.cli.context import Context
from canvasbus.cli.output import NOTHING, Cell, Column, ago, safe
from canvasbus.operate.alerts import GROUP, Case, desk
from canvasbus.operate.plugins import beside
from canvasbus.operate.steering import is_idle

INCIDENTS = (
    Column("INCIDENT"),
    Column("SEVERITY"),
    Column("SINCE", right=True),
    Column("TOLD"),
    Column("NOT TOLD"),
    Column("TITLE", flexible=True),
)
DESTINATIONS = (
    Column("DESTINATION"),
    Column("TOLD", right=True),
    Column("NOT TOLD", right=True),
    Column("WHY", flexible=True),
)
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
            until = found.disabled.get(name, 0.0)
            record = {"destination": name or None, "told": found.told.get(name, 0)}
            out.record({**record, "suppressed": found.suppressed.get(name, {}), "disabled": until > now})
        return 0
    open_ = [(incident_id, case) for incident_id, case in found.cases.items() if not case.over]
    if open_:
        out.table(INCIDENTS, [_incident(incident_id, case, now) for incident_id, case in open_])
        out.line()
    if names:
        out.table(
            DESTINATIONS, [_destination(name, found.told, found.suppressed, found.disabled, now) for name in names]
        )
    out.flush()
    silences = sum(1 for one in found.silences.values() if not one.until or one.until > now)
    out.note(f"{_count(len(open_), 'open incident')}, {_count(silences, 'silence')} in {context.where}")
    if context.link.run(is_idle(context.partitions, GROUP)):
        out.note("no alerts worker is there: nobody is told of anything (canvasbus-worker alerts)")
    return 0


def run_test(context: Context, _: argparse.Namespace) -> int:
    """1 when one failed."""
    failed = False
    for name, error in beside("alerts", "sampling").send_samples(context.loaded):
        failed = failed or error is not None
        if context.out.json:
            context.out.record({"destination": name, "ok": error is None, "error": error})
        else:
            word = context.out.paint("ok", "green") if error is None else context.out.paint("failed", "red")
            context.out.line(f"{safe(name)}: {word}" + (f": {safe(error)}" if error else ""))
    return 1 if failed else 0


def _incident(incident_id: str, case: Case, now: float) -> tuple[Cell | str, ...]:
    severity = Cell(case.severity, _STYLES.get(case.severity, ""))
    not_told = ", ".join(f"{name or 'nobody'} ({words.rpartition(' ')[2]})" for name, words in case.muted.items())
    told = ", ".join(case.told) or NOTHING
    return incident_id, severity, ago(now - case.since.timestamp()), told, not_told or NOTHING, case.title


def _destination(
    name: str, told: dict[str, int], suppressed: dict[str, dict[str, int]], disabled: dict[str, float], now: float
) -> tuple[Cell | str, ...]:
    reasons = suppressed.get(name, {})
    why = [f"{reason} {count:,}" for reason, count in sorted(reasons.items())]
    if disabled.get(name, 0.0) > now:
        why.insert(0, f"it said that it is gone: left alone for {ago(disabled[name] - now)}")
    return name or "nobody", f"{told.get(name, 0):,}", f"{sum(reasons.values()):,}", ", ".join(why) or NOTHING


def _for_machines(case: Case) -> dict[str, object]:
    return {
        "model_name": case.model_name,
        "severity": case.severity,
        "title": case.title,
        "signals": case.signals,
        "since": case.since,
        "over": case.over,
        "told": list(case.told),
        "not_told": {name: words.rpartition(" ")[2] for name, words in case.muted.items()},
    }


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"
