"""Plain expectations of data, before any test of drift: is the column there, of the right type, with values, in range,
of known categories, and does it vary? Each is held against the reference, by an exact binomial where chance has a part.

A feature that breaks one is left out of the drift tests of its window: what a broken sensor says is no distribution.
"""

from dataclasses import dataclass
from typing import Literal

from canvasbus_workers.monitoring.columns import Column
from canvasbus_workers.monitoring.partial import Partial, part_size
from canvasbus_workers.monitoring.reference import Reference
from canvasbus_workers.monitoring.statistics import too_many

Check = Literal["schema", "type", "missing", "range", "category", "constant", "duplicate"]

NOTICEABLE = 0.01
"""Share of rows by which a window must differ from its reference before a check is broken, however significant it is."""


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken expectation."""

    check: Check
    feature: str
    """Empty: the whole batch."""
    observed: float | None
    """Share of the rows; None: not a number."""
    allowed: float | None
    items: int
    """Rows that were looked at."""


def violations(reference: Reference, partial: Partial, level: float) -> list[Violation]:
    """What a window breaks, at most one for each column: the first in the order of `Check`."""
    found = [
        broken
        for at, column in enumerate(reference.columns)
        if (broken := _of_column(reference, column, partial, at, level)) is not None
    ]
    at = 0
    for embedding in reference.embeddings:
        there = int(partial.parts[at])
        at += part_size(embedding)
        if there < partial.items:
            share = 1 - there / partial.items
            check: Check = "schema" if there == 0 else "missing"
            if share > NOTICEABLE and too_many(partial.items - there, partial.items, 0.5 / embedding.items) <= level:
                found.append(Violation(check, embedding.name, share, 0.0, partial.items))
    return found


def _of_column(reference: Reference, column: Column, partial: Partial, at: int, level: float) -> Violation | None:
    rows, seen = partial.items, int(partial.seen[at])
    if seen < rows:
        return Violation("schema", column.name, 1 - seen / rows, 0.0, rows)
    if partial.wrong[at]:
        return Violation("type", column.name, float(partial.wrong[at]) / rows, 0.0, rows)

    def share(check: Check, count: int, items: int, usual: float, of: int) -> Violation | None:
        if (
            not count
            or count / items - usual <= NOTICEABLE
            or too_many(count, items, (usual * of + 0.5) / (of + 1)) > level
        ):
            return None
        return Violation(check, column.name, count / items, usual, items)

    absent = int(partial.missing[at])
    of = column.items + column.missing
    broken = share("missing", absent, rows, column.missing / of, of)
    if broken or absent == rows:
        return broken
    there = rows - absent
    broken = share("range", int(partial.outside[at]), there, 0.0, column.items)
    if broken:
        return broken
    counts = partial.counts[reference.starts[at] : reference.starts[at + 1]]
    if column.categorical:
        broken = share("category", int(counts[-1]), there, 0.0, column.items)
        return broken or _constant(column, there, level, int((counts > 0).sum()) == 1)
    return _constant(column, there, level, bool(partial.lows[at] == partial.highs[at]))


def _constant(column: Column, there: int, level: float, is_constant: bool) -> Violation | None:
    varied = column.mode_share < 1.0
    if not (is_constant and varied) or column.mode_share ** (there - 1) > level:
        return None
    return Violation("constant", column.name, 1.0, column.mode_share, there)
