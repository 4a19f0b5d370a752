"""What the metrics worker touches: its settings and the file of rules, read again while it runs."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from canvasbus import clock
from canvasbus.errors import ConfigError
from canvasbus_workers.metrics.rules import Rule, place_of, read_rules
from canvasbus_workers.metrics.settings import Settings

EVERY = 1.0
"""Seconds between two looks at the files. One look takes a fifth of a millisecond, and none is taken without a report."""
KEPT_AT_REST = 10_000
"""Series without rules that a process remembers."""


def rules_of(settings: Settings) -> dict[str, Rule]:
    """The rules of both places. Raises ConfigError, which names the file, the rule and the key."""
    found = read_rules(settings.rules, place_of)
    if not settings.rules_file:
        return found
    path = Path(settings.rules_file)
    try:
        tables = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"rules_file {path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"rules_file {path} is not TOML: {error}") from None
    except RecursionError:
        raise ConfigError(f"rules_file {path}: its values are nested too deeply") from None
    more = read_rules(tables, lambda name: f"rules_file {path}: [{name}]")
    both = sorted(found.keys() & more.keys())
    if both:
        raise ConfigError(f"rules_file {path}: the rule {both[0]} is in canvasbus.toml, too: keep one")
    return found | more


class Rules:
    """The rules in force in this process."""

    def __init__(self, read: Callable[[], Settings]) -> None:
        self._read = read
        self._looked = clock.monotonic()
        self.settings = read()
        self.rules = rules_of(self.settings)
        self._former: dict[str, Rule] = {}
        self._at_rest: dict[str, None] = {}
        self.complaint = ""
        """Why what is in the files now is not in force; empty: it is."""

    def about(self, model: str, metric: str, segment: str) -> dict[str, Rule]:
        """Those for one series."""
        return {name: rule for name, rule in self.rules.items() if rule.is_about(model, metric, segment)}

    def was_about(self, model: str, metric: str, segment: str) -> bool:
        """A rule that has been changed or taken away since this process began was for that series: it may be broken there."""
        return any(rule.is_about(model, metric, segment) for rule in self._former.values())

    def is_at_rest(self, series: str) -> bool:
        """No rule is for that series, and it has been seen that nothing is broken there."""
        return series in self._at_rest

    def rests(self, series: str) -> None:
        """Nothing is broken in a series that no rule is for: while that is so it need not be looked at again."""
        self._at_rest[series] = None
        if len(self._at_rest) > KEPT_AT_REST:
            del self._at_rest[next(iter(self._at_rest))]

    def refresh(self) -> bool:
        """Look at the files, at most once a second; True when rules or complaint are others than before. What is wrong
        changes nothing but the complaint: the old rules stay in force."""
        now = clock.monotonic()
        if now - self._looked < EVERY:
            return False
        self._looked = now
        before = self.settings, self.rules, self.complaint
        try:
            settings = self._read()
            rules = rules_of(settings)
        except ConfigError as error:
            self.complaint = str(error)
        else:
            if rules != self.rules:
                self._at_rest.clear()
            self._former |= {name: rule for name, rule in self.rules.items() if rules.get(name) != rule}
            self.rules, self.settings, self.complaint = rules, settings, ""
        return before != (self.settings, self.rules, self.complaint)

    def __repr__(self) -> str:
        return f"<Rules {', '.join(self.rules) or 'none'}{f' ({self.complaint})' if self.complaint else ''}>"
