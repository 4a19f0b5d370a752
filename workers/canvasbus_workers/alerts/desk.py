"""The desk: whom to tell what about the incidents that are open, and whom not.

Theory. For each incident and destination the desk knows what was told last. `tell` compares that with what is, and
returns what has to be told; asked twice it returns nothing the second time. So nothing has to be remembered about what
was held back: when a silence ends, a graver incident is resolved or a token comes, the difference is still there, and when
the incident is resolved before that, there is none.

    not told yet → opened · more severe than told → escalated · told long ago → repeated · over, and told → resolved

Not told, each counted once with its reason:

    silenced · inhibited · disabled (the destination said it is no more) · rate_limited (later) · unrouted · overflow

That it is over hears everybody who was told that it began, silenced or not. Pure, kept by the group. Seconds since 1970.
"""

from collections.abc import Container, Iterable
from datetime import datetime
from typing import Any, Literal, NamedTuple
from uuid import UUID

import msgspec
from msgspec import Struct, field

from canvasbus.events import IncidentOpened, IncidentResolved
from canvasbus_workers.alerts.bucket import Bucket
from canvasbus_workers.alerts.cases import Case
from canvasbus_workers.alerts.incidents import RANK, Incident, cut
from canvasbus_workers.alerts.matching import RETRAINING, Matcher
from canvasbus_workers.alerts.notification import Kind, Notification
from canvasbus_workers.alerts.settings import Inhibition, Settings

Reason = Literal["silenced", "inhibited", "disabled", "rate_limited", "unrouted", "overflow"]
NOBODY = ""
"""In the place of a destination where no route matches."""
MOST_OPEN = 200
"""Incidents; each commit writes the whole desk, and nobody reads more."""
MOST_BYTES = 720 * 1024
"""Of all incidents together: a state holds a megabyte at most."""
MOST_SILENCES = 200
LONGEST_PATTERNS = 300
"""Bytes of the patterns of a silence."""
MOST_TRAININGS = 200
"""In flight that may mute something; of more, the ones that count as lost first are forgotten."""
MOST_NAMES = 50
"""Destinations that the settings do not know any more, and of which counts are kept."""
_encode = msgspec.msgpack.Encoder().encode


class Silence(Struct):
    """Somebody does not want to hear of these."""

    matcher: Matcher
    until: float
    """0: until it is ended."""
    author: str = ""
    comment: str = ""


class Source(NamedTuple):
    """Something that may mute others."""

    incident_id: str
    model_name: str
    severity: str
    kinds: tuple[str, ...]


class Tell(Struct, frozen=True):
    """One notification for one destination."""

    destination: str
    number: int
    notification: Notification


class Mute(Struct, frozen=True):
    """Something that is not told, for the log."""

    incident_id: str
    destination: str
    kind: Kind
    reason: Reason


class Desk(Struct):
    """All that the group knows about telling."""

    cases: dict[str, Case] = field(default_factory=dict)
    """By the id of the incident."""
    silences: dict[str, Silence] = field(default_factory=dict)
    retraining: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Model → the run in flight, and when it counts as lost; those that a rule of the settings asks for."""
    buckets: dict[str, Bucket] = field(default_factory=dict)
    disabled: dict[str, float] = field(default_factory=dict)
    """Destination → until when it is left alone."""
    told: dict[str, int] = field(default_factory=dict)
    """Destination → notifications."""
    suppressed: dict[str, dict[str, int]] = field(default_factory=dict)
    """Destination → reason → how often."""

    def hear(
        self,
        group: str,
        incident: Incident,
        event: IncidentOpened | IncidentResolved | None,
        at: datetime,
        correlation_id: UUID,
    ) -> bool:
        """How an incident stands. `event`: what was published about it; None: its signals are others. `at`: when it
        happened; `correlation_id`: of what was heard. False: it is open, and there is no room for it."""
        known = self.cases.get(incident.incident_id if event is None else event.incident_id)
        if known is None:
            if isinstance(event, IncidentResolved) or not incident.incident_id:
                return True
            if len(self.cases) >= MOST_OPEN or self._is_heavy():
                if event is not None:
                    self._count(NOBODY, "overflow")
                return False
            self._take(group, incident, at, correlation_id)
            return True
        if event is not None:
            known.severity, known.title, known.at = event.severity, event.title, at
            known.over = isinstance(event, IncidentResolved)
        known.ringing = len(incident.ringing)
        if not known.over and not self._is_heavy():
            known.signals, known.kinds, known.summary = incident.signals, incident.kinds, incident.summary
        return True

    def _is_heavy(self) -> bool:
        return len(_encode(self.cases)) > MOST_BYTES

    def _take(self, group: str, incident: Incident, at: datetime, correlation_id: UUID) -> None:
        assert incident.since is not None, "it is open"
        self.cases[incident.incident_id] = Case(
            group=cut(group),
            model_name=incident.model_name,
            severity=incident.severity,
            title=incident.title,
            signals=incident.signals,
            kinds=incident.kinds,
            summary=incident.summary,
            since=incident.since,
            at=at,
            correlation_id=correlation_id,
            ringing=len(incident.ringing),
        )

    def silence(self, silence_id: str, silence: Silence) -> bool:
        """Add or replace one. False: there are too many."""
        if silence_id not in self.silences and len(self.silences) >= MOST_SILENCES:
            return False
        self.silences[silence_id] = silence
        return True

    def trains(self, model_name: str, run_id: str, lost: float) -> None:
        """A training is in flight, until `lost` at the latest."""
        self.retraining[cut(model_name)] = (cut(run_id), lost)
        while len(self.retraining) > MOST_TRAININGS:
            del self.retraining[min(self.retraining, key=lambda model: self.retraining[model][1])]

    def has_trained(self, model_name: str, run_id: str) -> bool:
        """A training has ended. False: nobody knew of it."""
        model_name = cut(model_name)
        run, _ = self.retraining.get(model_name, ("", 0.0))
        if run != cut(run_id):
            return False
        del self.retraining[model_name]
        return True

    def gone(self, destination: str, incident_id: str, until: float) -> None:
        """A destination is no more, and what it was to be told about this incident it has not heard."""
        self.disabled[destination] = until
        if incident_id in self.cases:
            self.cases[incident_id].told.pop(destination, None)

    def tell(self, now: float, settings: Settings) -> tuple[list[Tell], list[Mute]]:
        """What has to be told now, the gravest first; and what is held back since the last time."""
        self._forget(now, settings)
        sources = self._sources(settings)
        tells: list[Tell] = []
        mutes: list[Mute] = []
        for incident_id, case in sorted(self.cases.items(), key=lambda item: (-RANK[item[1].severity], item[1].since)):
            waits, held = False, None
            for destination in self._destinations(case, settings):
                kind = case.wanted(destination, now, settings)
                if kind is None:
                    case.muted.pop(destination, None)
                    continue
                if held is None:
                    held = self._held(incident_id, case, sources)
                reason = self._reason(destination, kind, held, now, settings)
                if reason is None:
                    made = case.tell(incident_id, destination, kind, now)
                    self.told[destination] = self.told.get(destination, 0) + 1
                    tells.append(Tell(destination, case.number, made))
                    continue
                waits = waits or reason == "rate_limited"
                if case.muted.get(destination) != f"{kind} {reason}":
                    case.muted[destination] = f"{kind} {reason}"
                    self._count(destination, reason)
                    mutes.append(Mute(incident_id, destination, kind, reason))
            if case.over and not waits:
                del self.cases[incident_id]
        return tells, mutes

    def due(self, now: float, settings: Settings) -> float | None:
        """When `tell` has to be asked again although nothing has happened, asked after `tell`. None: never."""
        times: list[float] = []
        for case in self.cases.values():
            if settings.repeat_seconds and not case.over:
                times += [told.at + settings.repeat_seconds for told in case.told.values()]
            times += [
                self.buckets[name].next_at(settings)
                for name, why in case.muted.items()
                if why.endswith(" rate_limited")
            ]
        if any(case.muted for case in self.cases.values()):
            times += [silence.until for silence in self.silences.values() if silence.until]
            times += [until for _, until in self.retraining.values()]
            times += self.disabled.values()
        later = [when for when in times if when > now]
        return min(later, default=None)

    def join(self, other: "Desk") -> None:
        """Take in what another partition's desk knows, for those who look at all of them. Each has tokens of its own: of a
        destination's the ones count that come last."""
        self.cases |= other.cases
        self.silences |= other.silences
        for name, until in other.disabled.items():
            self.disabled[name] = max(until, self.disabled.get(name, 0.0))
        for name, bucket in other.buckets.items():
            self.buckets[name] = max(bucket, self.buckets.get(name, bucket), key=lambda one: one.empty_until)
        for name, count in other.told.items():
            self.told[name] = self.told.get(name, 0) + count
        for name, reasons in other.suppressed.items():
            sums = self.suppressed.setdefault(name, {})
            for reason, count in reasons.items():
                sums[reason] = sums.get(reason, 0) + count

    def waiting(self, destination: str) -> int:
        """Incidents that it is told of when it has tokens again."""
        return sum(case.muted.get(destination, "").endswith(" rate_limited") for case in self.cases.values())

    def _destinations(self, case: Case, settings: Settings) -> list[str]:
        known = settings.names
        if case.over:
            return [name for name in known if name in case.told]
        if not settings.routes:
            return list(known)
        wanted = {
            name
            for route in settings.routes
            if route.touches(case.model_name, case.severity, case.kinds)
            for name in route.destinations
        }
        return [name for name in known if name in wanted] or [NOBODY]

    def _held(
        self, incident_id: str, case: Case, sources: Iterable[tuple[Inhibition, Iterable[Source]]]
    ) -> Literal["silenced", "inhibited", ""]:
        """Why nobody is to be told of an incident, except that it is over. Looked up once for all destinations: with many
        silences it is what costs."""
        if any(each.matcher.covers(case.model_name, case.severity, case.kinds) for each in self.silences.values()):
            return "silenced"
        return "inhibited" if any(_mutes(rule, found, incident_id, case) for rule, found in sources) else ""

    def _reason(
        self,
        destination: str,
        kind: Kind,
        held: Literal["silenced", "inhibited", ""],
        now: float,
        settings: Settings,
    ) -> Reason | None:
        if destination == NOBODY:
            return "unrouted"
        if destination in self.disabled:
            return "disabled"
        if held and kind != "resolved":
            return held
        bucket = self.buckets.setdefault(destination, Bucket(settings.burst, now))
        return None if bucket.take(now, settings) else "rate_limited"

    def _sources(self, settings: Settings) -> list[tuple[Inhibition, list[Source]]]:
        """For each rule what is open of its source, looked up once for all incidents: in a storm there are many."""
        facts = [
            Source(incident_id, case.model_name, case.severity, case.kinds)
            for incident_id, case in self.cases.items()
            if not case.over
        ]
        facts += [Source("", model_name, "info", (RETRAINING,)) for model_name in self.retraining]
        return [
            (rule, [one for one in facts if rule.source.touches(one.model_name, one.severity, one.kinds)])
            for rule in settings.inhibit
        ]

    def _count(self, destination: str, reason: Reason) -> None:
        reasons = self.suppressed.setdefault(destination, {})
        reasons[reason] = reasons.get(reason, 0) + 1

    def _forget(self, now: float, settings: Settings) -> None:
        self.silences = {name: one for name, one in self.silences.items() if not one.until or now < one.until}
        self.retraining = {model: run for model, run in self.retraining.items() if now < run[1]}
        self.disabled = {name: until for name, until in self.disabled.items() if now < until}
        known = {*settings.names, NOBODY}
        for counts in (self.buckets, self.disabled, self.told, self.suppressed):
            _bound(counts, known)
        for case in self.cases.values():
            _bound(case.told, known)
            _bound(case.muted, known)


def _bound(names: dict[str, Any], known: Container[str]) -> None:
    """Forget the oldest of what the settings do not know. Not at once: while programs are replaced there are two settings."""
    if len(names) > MOST_NAMES:
        for name in [name for name in names if name not in known][:-MOST_NAMES]:
            del names[name]


def _mutes(rule: Inhibition, sources: Iterable[Source], incident_id: str, case: Case) -> bool:
    """What is open of the rule's source mutes this incident."""
    return rule.target.covers(case.model_name, case.severity, case.kinds) and any(
        one.incident_id != incident_id
        and ("model_name" not in rule.equal or one.model_name == case.model_name)
        and ("signal" not in rule.equal or not set(one.kinds).isdisjoint(case.kinds))
        for one in sources
    )
