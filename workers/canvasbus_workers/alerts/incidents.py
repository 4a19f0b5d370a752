"""Signals become incidents: one open incident a group, however many detectors ring.

    a firm signal opens it · a more severe one escalates it (same id) · when nothing rings any more it is resolved

A signal is firm at once when it is critical, else after `for_seconds`. Theory: `ring` and `end` only write down what was
heard; `step` compares that with the time and says what follows, so it does not matter which of an event and a timer came
first, or how often it is asked. `due` is when it has to be asked again.

Signals and their ends come on streams of their own, in any order: what ended is remembered apart (`Ended`), and rings no
more.

Pure: kept by the group (`ctx.state`), it changes together with what is published about it. Held in a process, an incident
whose event was never committed would count as told. Times are seconds since 1970, of whoever handles the events.
"""

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

from msgspec import Struct, field

from canvasbus.events import IncidentOpened, IncidentResolved, Severity
from canvasbus_workers.alerts.settings import Settings
from canvasbus_workers.alerts.signals import Signal
from canvasbus_workers.naming import name_of

RANK: Mapping[str, int] = {"info": 0, "warning": 1, "critical": 2}
_SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical")
KEPT_ENDED = 64
MOST_RINGING = 1000
"""Signals of one incident, a kilobyte each at most; a state holds a megabyte. Beyond, the oldest is forgotten."""
ROOM_SECONDS = 60.0
"""After which the desk is asked again whether it has room."""
FULL_SECONDS = 600.0
"""The longest time between two such looks: with thousands that wait there would be hundreds of them a second."""
SHOWN = 10
"""Signals that events name."""
MOST_KINDS = 20
"""Of the signals of one incident that routes and silences are asked about."""
OTHERS = "…"
"""In the place of all further ones: only * means them."""
LINE = 160
"""Bytes."""


class Ringing(Struct, array_like=True):
    """One signal that rings."""

    model_name: str
    severity: Severity
    title: str
    since: float
    at: datetime
    until: float = 0.0
    """When it is over by itself; 0: somebody will say so."""
    kind: str = ""
    """Of the signal; it may have colons in it, as those of metrics have."""


class Ended(Struct):
    """What is over in a group: its last signals, and when they ended."""

    signals: dict[str, datetime] = field(default_factory=dict)

    def note(self, signal: Signal) -> None:
        """Remember an end."""
        self.signals.pop(signal.name, None)
        self.signals[signal.name] = signal.at
        while len(self.signals) > KEPT_ENDED:
            del self.signals[next(iter(self.signals))]

    def outlives(self, signal: Signal) -> bool:
        """The signal came late: it had ended when it was sent, or its name is never used again."""
        ended = self.signals.get(signal.name)
        return ended is not None and (signal.once or signal.at <= ended)


class Incident(Struct):
    """What rings in one group, and the incident that it is."""

    incident_id: str = ""
    """Empty: nothing is open."""
    severity: Severity = "info"
    since: datetime | None = None
    model_name: str = ""
    title: str = ""
    raised: float = 0.0
    """When it was opened or last became more severe."""
    calm: float = 0.0
    """Since when nothing rings; 0: something does."""
    ringing: dict[str, Ringing] = field(default_factory=dict)
    """In the order in which they began."""
    unheard: float = 0.0
    """There was no room at the desk: when it is told again at the latest that this is open; 0: the desk knows."""

    def ring(self, signal: Signal, now: float, settings: Settings) -> None:
        """A signal rings; known ones may become more severe."""
        assert signal.severity is not None
        known = self.ringing.get(signal.name)
        severity = signal.severity
        if known is not None and RANK[known.severity] > RANK[severity]:
            severity = known.severity
        self.ringing[signal.name] = Ringing(
            cut(signal.model_name),
            severity,
            cut(signal.title),
            known.since if known else now,
            signal.at,
            now + settings.quiet_seconds if signal.fades else 0.0,
            cut(signal.kind),
        )
        if len(self.ringing) > MOST_RINGING:
            del self.ringing[next(iter(self.ringing))]

    def end(self, signal: Signal) -> bool:
        """A signal is over. False: before it had lasted for `for_seconds`, as nobody was told. When it comes again it
        begins anew, as the pending alerts of a Prometheus do."""
        ended = self.ringing.pop(signal.name, None)
        if ended is not None and not self.ringing:
            self.title = cut(signal.title)
        return ended is None or bool(self.incident_id)

    def step(
        self, group: str, cause: UUID, at: datetime, now: float, settings: Settings
    ) -> IncidentOpened | IncidentResolved | None:
        """What follows. `cause`: the event that asks, which names what it opens; `at`: when it happened."""
        for name in [name for name, one in self.ringing.items() if one.until and now >= one.until]:
            self.title = f"{self.ringing.pop(name).title}: not heard of any more"
        if not self.ringing:
            return self._calm(group, at, now, settings)
        self.calm = 0.0
        firm = [one for one in self.ringing.values() if _firm_at(one, settings) <= now]
        if not firm:
            return None
        worst = max(firm, key=lambda one: RANK[one.severity])
        if not self.incident_id:
            models = {one.model_name for one in self.ringing.values()}
            self.model_name = cut(models.pop()) if len(models) == 1 and "model_name=" in group else ""
            self.incident_id = name_of(self.model_name or cut(group) or "all", str(cause)[-12:])
            self.since = firm[0].at
            return self._raise(group, worst.severity, worst.title, now, escalated=False)
        if RANK[worst.severity] > RANK[self.severity]:
            return self._raise(group, worst.severity, worst.title, now, escalated=True)
        if now >= self._unheeded(settings):
            more = _SEVERITIES[RANK[self.severity] + 1]
            return self._raise(group, more, f"{worst.title}, and it goes on", now, escalated=True)
        return None

    def due(self, settings: Settings) -> float | None:
        """When `step` has to be asked again although nothing is heard, asked after `step`. None: never."""
        times = [one.until for one in self.ringing.values() if one.until]
        if self.incident_id and not self.ringing:
            times.append(self.calm + settings.resolve_seconds)
        if self.incident_id and self.ringing:
            times.append(self._unheeded(settings))
        for one in self.ringing.values():
            if not self.incident_id or RANK[one.severity] > RANK[self.severity]:
                times.append(_firm_at(one, settings))
        if self.incident_id and self.unheard:
            times.append(self.unheard)
        soonest = min(times, default=float("inf"))
        return soonest if soonest < float("inf") else None

    def heard(self, known: bool, now: float) -> None:
        """Whether the desk knows how it stands. Else it is asked ever more rarely."""
        self.unheard = 0.0 if known else now + min(max(ROOM_SECONDS, now - self.raised), FULL_SECONDS)

    def _raise(self, group: str, severity: Severity, title: str, now: float, *, escalated: bool) -> IncidentOpened:
        self.severity, self.title, self.raised = severity, title, now
        return IncidentOpened(
            model_name=self.model_name,
            incident_id=self.incident_id,
            severity=severity,
            title=title,
            signals=self.signals,
            escalated=escalated,
            group=group,
            summary=self.summary,
            since=self.since,
        )

    def _calm(self, group: str, at: datetime, now: float, settings: Settings) -> IncidentResolved | None:
        if not self.incident_id:
            return None
        self.calm = self.calm or now
        if now < self.calm + settings.resolve_seconds:
            return None
        assert self.since is not None
        resolved = IncidentResolved(
            model_name=self.model_name,
            incident_id=self.incident_id,
            title=self.title,
            duration=max(0.0, (at - self.since).total_seconds()),
            severity=self.severity,
            group=group,
            since=self.since,
        )
        self.incident_id, self.severity, self.since, self.calm = "", "info", None, 0.0
        return resolved

    def _unheeded(self, settings: Settings) -> float:
        """When it becomes more severe because nobody ended it."""
        if not settings.escalate_seconds or self.severity == "critical":
            return float("inf")
        return self.raised + settings.escalate_seconds

    @property
    def signals(self) -> tuple[str, ...]:
        """The names of its signals, the newest where there are many."""
        return tuple(cut(name) for name in tuple(self.ringing)[-SHOWN:])

    @property
    def summary(self) -> tuple[str, ...]:
        """A line for each of them."""
        return tuple(one.title for one in tuple(self.ringing.values())[-SHOWN:])

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of all its signals."""
        kinds = tuple(dict.fromkeys(cut(one.kind or name.partition(":")[0]) for name, one in self.ringing.items()))
        return kinds if len(kinds) <= MOST_KINDS else (*kinds[:MOST_KINDS], OTHERS)


def cut(text: str) -> str:
    """No more of it than LINE."""
    return text if len(text) <= LINE // 4 else text.encode()[:LINE].decode(errors="ignore")


def _firm_at(one: Ringing, settings: Settings) -> float:
    return one.since if one.severity == "critical" else one.since + settings.for_seconds
