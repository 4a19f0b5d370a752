"""What the metrics worker can be told: the table [workers.metrics] of canvasbus.toml."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from canvasbus_workers.metrics.rules import place_of, read_rules


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.metrics]. It is read again while the worker runs."""

    rules: dict[str, dict[str, Any]] = msgspec.field(default_factory=dict)
    """[workers.metrics.rules.NAME], one table for each rule."""
    rules_file: str = ""
    """A file with more of them, [NAME] each; a relative path begins where the worker was started."""
    late_seconds: Annotated[float, Meta(ge=0, le=86400)] = 60.0
    """By how much a report may be older than the newest one of its metric and still count."""
    keep_seconds: Annotated[float, Meta(gt=0, le=366 * 86400)] = 30 * 86400.0
    """Seconds after which a metric that nobody reports is forgotten."""

    def __post_init__(self) -> None:
        read_rules(self.rules, place_of)


def check(settings: Settings) -> str:
    """What the doctor says about them. Raises ConfigError for a file of rules that is wrong."""
    from canvasbus_workers.metrics.edge import rules_of

    rules = rules_of(settings)
    return f"{len(rules)} rule{'' if len(rules) == 1 else 's'}"
