"""What a rule can say, and whom it is about. No I/O."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from canvasbus.config import table
from canvasbus.events import Severity
from canvasbus_workers.patterns import fits

Seconds = Annotated[float, Meta(ge=0, le=366 * 86400)]
Duration = Annotated[float, Meta(gt=0, le=366 * 86400)]
Condition = Literal["value", "change", "relative_change"]


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.metrics.rules.NAME], or [NAME] in a file of rules."""

    metric: Annotated[str, Meta(min_length=1)]
    """The metric's name: a pattern, as `model` and `segment` are."""
    model: str = "*"
    """Of which models."""
    segment: str = "*"
    """Of which segments: the label `segment` of a report, empty where it has none."""
    of: Condition = "value"
    """What the bounds are for: the value, or how it differs from the one `over_seconds` before (relative: as a share of
    that one)."""
    over_seconds: Duration = 3600.0
    """The time over which a change is looked at."""
    min: float | None = None
    """Below it is a breach."""
    max: float | None = None
    """Above it is a breach."""
    for_seconds: Seconds = 0.0
    """For how long the bound must have been broken, by each report in that time; 0: one report is enough."""
    recover_min: float | None = None
    """At least so much ends a breach (default: `min`)."""
    recover_max: float | None = None
    """At most so much ends a breach (default: `max`)."""
    recover_for_seconds: Seconds = 0.0
    """For how long that must have been so, by each report."""
    absent_seconds: Duration | None = None
    """Seconds without a report that are a breach, too."""
    repeat_seconds: Seconds = 0.0
    """A breach that goes on is told again after so long; 0: never."""
    severity: Severity = "warning"
    """How bad a breach is. critical: also a reason to train a new version."""

    def __post_init__(self) -> None:
        if self.min is None and self.max is None and self.absent_seconds is None:
            raise ValueError("give min, max or absent_seconds")
        low, high = self.recovers
        for bound, calm in (("min", self.recover_min), ("max", self.recover_max)):
            if calm is not None and getattr(self, bound) is None:
                raise ValueError(f"recover_{bound} needs {bound}")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min = {self.min:g} lies above max = {self.max:g}")
        if self.min is not None and low is not None and low < self.min:
            raise ValueError(f"recover_min = {low:g} lies below min = {self.min:g}")
        if self.max is not None and high is not None and high > self.max:
            raise ValueError(f"recover_max = {high:g} lies above max = {self.max:g}")
        if low is not None and high is not None and low > high:
            raise ValueError(f"no value ends a breach: it would be at least {low:g} and at most {high:g}")

    @property
    def bounded(self) -> bool:
        """It has bounds; else it is about absence alone."""
        return self.min is not None or self.max is not None

    @property
    def recovers(self) -> tuple[float | None, float | None]:
        """Between these a value ends a breach."""
        return (
            self.min if self.recover_min is None else self.recover_min,
            self.max if self.recover_max is None else self.recover_max,
        )

    def is_about(self, model: str, metric: str, segment: str) -> bool:
        """It is for this series."""
        return fits(self.metric, metric) and fits(self.model, model) and fits(self.segment, segment)

    def broken(self, quantity: float) -> tuple[Literal["below", "above"], float] | None:
        """On which side of which bound the quantity lies; None: it keeps them."""
        if self.min is not None and quantity < self.min:
            return "below", self.min
        if self.max is not None and quantity > self.max:
            return "above", self.max
        return None

    def calm(self, quantity: float) -> bool:
        """The quantity may end a breach."""
        low, high = self.recovers
        return (low is None or quantity >= low) and (high is None or quantity <= high)


def read_rules(tables: Mapping[str, Any], place: Callable[[str], str]) -> dict[str, Rule]:
    """Name → rule. `place`: where the table of a rule lies, by its name. Raises ConfigError."""
    return {name: table(place(name), given, Rule) for name, given in tables.items()}


def place_of(name: str) -> str:
    """Where a rule lies in canvasbus.toml."""
    return f"[workers.metrics.rules.{name}]"
