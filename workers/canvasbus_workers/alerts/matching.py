"""Which incidents a silence, a route or an inhibition means: patterns for labels. Pure.

A pattern is a glob, or several with | between them: `StyleGAN-*`, `warning|info`. An incident gathers several signals.
Muting it needs a pattern that all of them match, or the silence of one would hide the others; routing it needs one.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

from msgspec import Struct


class Matcher(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Patterns for labels; all of them must match."""

    model_name: str = "*"
    """The model."""
    severity: str = "*"
    """info, warning or critical."""
    signal: str = "*"
    """The kind of signal: drift, a metric's name, quality, retrain, handler, loss."""

    def covers(self, model_name: str, severity: str, signals: Iterable[str]) -> bool:
        """It matches, and all the kinds of signals do."""
        return self._fits(model_name, severity) and all(fits(self.signal, kind) for kind in signals)

    def touches(self, model_name: str, severity: str, signals: Iterable[str]) -> bool:
        """It matches, and one of the kinds of signals does."""
        return self._fits(model_name, severity) and any(fits(self.signal, kind) for kind in signals)

    def _fits(self, model_name: str, severity: str) -> bool:
        return fits(self.model_name, model_name) and fits(self.severity, severity)


def fits(pattern: str, text: str) -> bool:
    """True when one of the pattern's globs matches the text."""
    return any(fnmatchcase(text, glob) for glob in pattern.split("|"))
