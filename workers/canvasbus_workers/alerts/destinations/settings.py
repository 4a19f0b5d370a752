"""What a destination can be told: its table [workers.alerts.destinations.NAME] of canvasbus.toml, one type for each `kind`.

`read` looks at the tables alone, so that `canvasbus doctor` may run where the secrets are not; these are read when the
destinations are opened.
"""

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta, Struct

from canvasbus.errors import ConfigError
from canvasbus_workers.alerts.destinations.guard import Allow, flaw
from canvasbus_workers.outside.secret import Secret

Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


class Http(Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What all kinds can be told. One of the three `url…` is needed."""

    url: Secret | None = None
    """Where to post."""
    url_file: str | None = None
    """A file in which the URL stands, for URLs that are secrets."""
    url_env: str | None = None
    """An environment variable in which it stands."""
    timeout_seconds: Annotated[float, Meta(gt=0, le=300)] = 10.0
    """Seconds for the whole request, from looking up the name to the answer."""
    retry_after_seconds: Seconds = 900.0
    """Seconds at most that the destination may put us off with Retry-After."""
    plain_http: bool = False
    """Whether http:// will do."""
    allow: tuple[str, ...] = ()
    """Host names, addresses and networks that may be called although their addresses are not public."""
    ca_file: str | None = None
    """Certificates (PEM) of the authorities to trust, instead of the system's."""
    proxy: Secret | None = None
    """URL of an HTTP proxy; then it is the proxy that looks up names and has to guard. The environment's are ignored."""
    proxy_file: str | None = None
    """A file in which it stands."""
    proxy_env: str | None = None
    """An environment variable in which it stands."""


class Slack(Http, frozen=True, kw_only=True, tag="slack", forbid_unknown_fields=True):
    """An incoming webhook of Slack."""


class Authorized(Http, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kinds that may want a header Authorization, for example `Bearer …`."""

    authorization_file: str | None = None
    """A file in which its value stands."""
    authorization_env: str | None = None
    """An environment variable in which it stands."""


class Webhook(Authorized, frozen=True, kw_only=True, tag="webhook", forbid_unknown_fields=True):
    """Any HTTP endpoint."""

    body: Literal["cloudevents", "alertmanager"] = "cloudevents"
    """A CloudEvents 1.0 object, or what Alertmanager sends to its webhooks (version 4)."""
    secret_files: tuple[str, ...] = ()
    """Files with the secrets (`whsec_…`) by which requests are signed; several while a secret is replaced."""
    secret_envs: tuple[str, ...] = ()
    """Environment variables with such secrets."""


class Alertmanager(Authorized, frozen=True, kw_only=True, tag="alertmanager", forbid_unknown_fields=True):
    """A Prometheus Alertmanager; the URL is that of its front page."""

    hold_seconds: Seconds = 86400.0
    """Seconds after which Alertmanager takes an incident of which it hears nothing for resolved; more than the interval at
    which open incidents are repeated."""


Settings = Slack | Webhook | Alertmanager
KINDS: Mapping[str, type[Settings]] = {"slack": Slack, "webhook": Webhook, "alertmanager": Alertmanager}


def read(table: Mapping[str, Any]) -> dict[str, Settings]:
    """The destinations of the table [workers.alerts.destinations], by name.

    Raises ConfigError, one line that names the table and the key, and never the value of a secret.
    """
    return {name: _read_one(name, given, f"[workers.alerts.destinations.{name}]") for name, given in table.items()}


def _read_one(name: str, given: Any, place: str) -> Settings:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{place}: the name needs 1 to 100 letters, digits, dots, dashes and underscores")
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place}: write one table for each destination")
    cls = KINDS.get(kind) if isinstance(kind := given.get("kind"), str) else None
    if cls is None:
        raise ConfigError(f"{place}: kind must be one of log, {', '.join(KINDS)}")  # log is the worker's own
    known = ("kind", *(field.encode_name for field in msgspec.structs.fields(cls)))
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            raise ConfigError(f"{place}: unknown key {key!r}; {hint}")
    try:
        settings: Settings = msgspec.convert(given, cls, dec_hook=_secret)
    except msgspec.ValidationError as error:
        said, _, path = str(error).partition(" - at ")
        raise ConfigError(f"{place}: {path.strip('`').removeprefix('$.')}: {said}".replace("`", "")) from None
    _check(settings, place)
    return settings


def _secret(wanted: type, value: Any) -> Any:
    if wanted is Secret and isinstance(value, str) and value:
        return Secret(value)
    raise ValueError("expected a text")


def _check(settings: Settings, place: str) -> None:
    for key, needed in (("url", True), ("proxy", False), ("authorization", False)):
        ways = [one for one in (key, f"{key}_file", f"{key}_env") if hasattr(settings, one)]
        given = sum(getattr(settings, one) is not None for one in ways)
        if given > 1 or (needed and not given):
            raise ConfigError(f"{place}: give {'one' if needed else 'at most one'} of {', '.join(ways)}")
    try:
        Allow.of(settings.allow)
    except ValueError as error:
        raise ConfigError(f"{place}: allow: {error}") from None
    if settings.url is not None:
        check_url(settings, settings.url, place)


def check_url(settings: Settings, url: Secret, place: str) -> None:
    """Raises ConfigError, which does not repeat the URL, for one that is none to post to."""
    wrong = flaw(url.reveal(), Allow.of(settings.allow), plain_http=settings.plain_http)
    if wrong is not None:
        raise ConfigError(f"{place}: the URL {wrong}")
