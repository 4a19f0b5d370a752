"""canvasbus config show"""

import argparse

from canvasbus.cli.context import Context
from canvasbus.cli.output import Cell, Column
from canvasbus.config import DEFAULT, KEYS, SECRETS, redacted

COLUMNS = (Column("SETTING"), Column("VALUE"), Column("FROM"))


def run_show(context: Context, _: argparse.Namespace) -> int:
    """Every setting, its value and its origin; passwords never."""
    loaded, out = context.loaded, context.out
    rows: list[tuple[str, object, str]] = []
    for key in KEYS:
        value = getattr(loaded.settings, key)
        rows.append((key, redacted(value) if key in SECRETS and value else value, loaded.origins[key]))
    for name in loaded.workers:
        rows.append((f"workers.{name}", ", ".join(loaded.workers[name]) or None, str(loaded.file)))
    if out.json:
        for key, value, origin in rows:
            out.record({"key": key, "value": value, "from": origin})
        return 0
    out.table(
        COLUMNS,
        [(key, _shown(value), Cell(origin, "dim" if origin == DEFAULT else "cyan")) for key, value, origin in rows],
    )
    return 0


def _shown(value: object) -> Cell:
    if value is None or value == ():
        return Cell("not set", "dim")
    if isinstance(value, tuple):
        return Cell(", ".join(value))
    if isinstance(value, int) and value >= 10_000:
        return Cell(f"{value:,}")
    return Cell(f"{value:g}" if isinstance(value, float) else str(value))
