"""Which incidents a silence, a route or an inhibition means: patterns for labels. Pure.

An incident gathers several signals. Muting it needs a pattern that all of them match, or the silence of one would hide the
others; routing it needs one.
"""

from collections.abc import Iterable
from typing import get_args

from msgspec import Struct

from canvasbus.events import Severity
from canvasbus_workers.patterns import fits, fits_nothing

SIGNALS = ("drift", "metric:*", "quality", "retrain", "approval", "handler", "loss")
"""The kinds of signals that incidents are made of. Metrics have a name space of their own: one may be called `drift`."""
RETRAINING = "retraining"
"""What a training in flight is called as the source of an inhibition; nobody is told of it."""
SEVERITIES: tuple[str, ...] = get_args(Severity)


class Matcher(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Patterns for labels; all of them must match."""

    model_name: str = "*"
    """The model."""
    severity: str = "*"
    """info, warning or critical."""
    signal: str = "*"
    """The kind of signal: drift, metric:NAME, quality, retrain, approval, handler, loss."""

    def check(self, *more: str) -> None:
        """Raises ValueError for a word that matches nothing; `more`: what counts as a signal here besides those of
        incidents. Not asked when one is made: silences come from anybody."""
        if (word := fits_nothing(self.severity, SEVERITIES)) is not None:
            raise ValueError(f"no incident has the severity {word!r}; there are {', '.join(SEVERITIES)}")
        known = (*SIGNALS, *more)
        if (word := fits_nothing(self.signal, known)) is not None:
            raise ValueError(f"no signal is called {word!r}; there are {', '.join(known)}")

    def covers(self, model_name: str, severity: str, signals: Iterable[str]) -> bool:
        """It matches, and all the kinds of signals do."""
        return self._fits(model_name, severity) and all(fits(self.signal, kind) for kind in signals)

    def touches(self, model_name: str, severity: str, signals: Iterable[str]) -> bool:
        """It matches, and one of the kinds of signals does."""
        return self._fits(model_name, severity) and any(fits(self.signal, kind) for kind in signals)

    def _fits(self, model_name: str, severity: str) -> bool:
        return fits(self.model_name, model_name) and fits(self.severity, severity)
