"""Where rows go. A sink takes a batch of them at once, and takes each as often as it comes: it is known by its event id.

redis    the online store            sqlite   the offline log            feast    Feast's feature server
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

from canvasbus_workers.features.rows import FeatureRow


class Away(Exception):
    """The sink takes nothing now, or not from us: all rows of the batch come again. The text says whose move is next."""


class RowsRefused(Exception):
    """Some rows were not taken; the others are stored. Position in the batch → why."""

    def __init__(self, refused: Mapping[int, str], failed: Mapping[int, str] | None = None) -> None:
        self.refused = dict(refused)
        """Will never be taken."""
        self.failed = dict(failed or {})
        """May be taken another time; nobody can tell. Each time counts as an attempt."""
        super().__init__(f"{len(self.refused)} rows refused, {len(self.failed)} failed")


class FeatureSink(Protocol):
    """One place where rows go."""

    name: str
    """From its settings; errors begin with it."""

    async def write(self, rows: Sequence[FeatureRow]) -> None:
        """Store the rows. Writing a row again, or an older one late, changes nothing. Raises Away and RowsRefused."""
        ...

    async def aclose(self) -> None:
        """Let go of what is open."""
        ...
