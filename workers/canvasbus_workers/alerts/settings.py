"""What the alerts worker can be told: the table [workers.alerts] of canvasbus.toml. Silences are not in it: they come and
go while it runs."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field

from canvasbus_workers.alerts import edge
from canvasbus_workers.alerts.matching import RETRAINING, Matcher
from canvasbus_workers.patterns import fits

Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
Delay = Annotated[float, Meta(ge=0, le=366 * 86400)]
Label = Literal["model_name", "signal", "segment"]


class Route(Matcher, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of [[workers.alerts.routes]]: incidents that match go to these destinations."""

    destinations: tuple[str, ...]
    """Names of [workers.alerts.destinations.NAME]."""


class Inhibition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of [[workers.alerts.inhibit]]: while something that matches `source` is open, what matches `target` is not told."""

    source: Matcher
    """An open incident; or a training in flight, which is the signal `retraining`."""
    target: Matcher
    """What is muted, when all of its signals match."""
    equal: tuple[Literal["model_name", "signal"], ...] = ("model_name",)
    """Labels that both must have in common."""


GRAVE_MUTES_SLIGHT = Inhibition(source=Matcher(severity="critical"), target=Matcher(severity="warning|info"))


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.alerts]."""

    group_by: tuple[Label, ...] = ("model_name",)
    """Signals that have these in common are one incident; none: everything is one."""
    for_seconds: Delay = 0.0
    """Seconds for which a signal must last before it opens an incident or makes it worse; critical ones do at once. Each
    time it comes it begins anew: what comes and goes faster is never told."""
    resolve_seconds: Delay = 0.0
    """Seconds for which nothing may ring before an incident is resolved: what flaps stays one incident."""
    quiet_seconds: Seconds = 3600.0
    """Seconds after which a signal is over of which nobody says so: data quality, failed handlers, losses, trainings."""
    repeat_seconds: Delay = 4 * 3600.0
    """Seconds after which an open incident is told again; 0: never."""
    escalate_seconds: Delay = 0.0
    """Seconds after which an open incident becomes one step more severe; 0: never."""
    retrain_seconds: Seconds = 6 * 3600.0
    """Seconds after which a training of which nobody heard the end counts as in flight no more."""
    gone_seconds: Seconds = 86400.0
    """Seconds for which a destination is left alone that said it is no more (410)."""
    rate_per_minute: Annotated[float, Meta(gt=0, le=6000)] = 30.0
    """Notifications a minute to one destination, on average."""
    burst: Annotated[int, Meta(ge=1, le=1000)] = 10
    """Notifications to one destination at once, after a rest."""
    inhibit: tuple[Inhibition, ...] = (GRAVE_MUTES_SLIGHT,)
    """What mutes what."""
    routes: tuple[Route, ...] = ()
    """Which incidents go where: to all destinations of all routes that match. None at all: everything goes everywhere."""
    destinations: dict[str, dict[str, Any]] = field(default_factory=dict)
    """[workers.alerts.destinations.NAME], each with a `kind`; none: the log."""

    def __post_init__(self) -> None:
        edge.check(self.destinations, self.repeat_seconds)
        known = self.names
        for rule in self.inhibit:
            rule.source.check(RETRAINING)
            rule.target.check()
        for route in self.routes:
            route.check()
            for name in route.destinations:
                if name not in known:
                    raise ValueError(f"routes: there is no destination {name!r}; there are {', '.join(known)}")

    @property
    def asks_for_trainings(self) -> bool:
        """A rule mutes something while a model is trained; else nothing of trainings is remembered."""
        sources = [rule.source for rule in self.inhibit]
        return any(fits(one.severity, "info") and fits(one.signal, RETRAINING) for one in sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The destinations that there are."""
        return tuple(self.destinations) or ("log",)


def check(settings: Settings) -> str:
    """What the doctor says about them. Raises ConfigError for a secret or a library that is missing."""
    count = edge.check_outside(settings.destinations)
    return f"{count} destination{'' if count == 1 else 's'}"
