"""What a destination can be told: its table [workers.alerts.destinations.NAME] of canvasbus.toml, one type for each `kind`.

`read` looks at the tables alone; `secrets` at what they name outside of them, when the destinations are opened, and for
`canvasbus doctor`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from msgspec import Meta, Struct

from canvasbus.config import table
from canvasbus.errors import ConfigError
from canvasbus_workers.alerts.destinations.webhook import Key
from canvasbus_workers.outside import secret
from canvasbus_workers.outside.guard import Allow, flaw
from canvasbus_workers.outside.library import need_http
from canvasbus_workers.outside.secret import Secret

Seconds = Annotated[float, Meta(gt=0, le=366 * 86400)]
_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,100}")


class Http(Struct, frozen=True, kw_only=True, tag_field="kind", forbid_unknown_fields=True):
    """What all kinds can be told. One of the three `url…` is needed."""

    url: Secret | None = None
    """Where to post."""
    url_file: str = ""
    """A file in which the URL stands, for URLs that are secrets."""
    url_env: str = ""
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
    proxy_file: str = ""
    """A file in which it stands."""
    proxy_env: str = ""
    """An environment variable in which it stands."""


class Slack(Http, frozen=True, kw_only=True, tag="slack", forbid_unknown_fields=True):
    """An incoming webhook of Slack."""


class Authorized(Http, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Kinds that may want a header Authorization."""

    authorization_file: str = ""
    """A file in which its whole value stands, for example `Bearer …`."""
    authorization_env: str = ""
    """An environment variable in which it stands."""


class Webhook(Authorized, frozen=True, kw_only=True, tag="webhook", forbid_unknown_fields=True):
    """Any HTTP endpoint."""

    body: Literal["cloudevents", "alertmanager"] = "cloudevents"
    """A CloudEvents 1.0 object, or what Alertmanager sends to its webhooks (version 4)."""
    secret_file: str = ""
    """A file with the secret (`whsec_…`) by which requests are signed; with both, on a line each, while it is replaced."""
    secret_env: str = ""
    """An environment variable with it, or with both and white space between them."""


class Alertmanager(Authorized, frozen=True, kw_only=True, tag="alertmanager", forbid_unknown_fields=True):
    """A Prometheus Alertmanager; the URL is that of its front page."""

    hold_seconds: Seconds = 86400.0
    """Seconds after which Alertmanager takes an incident of which it hears nothing for resolved; more than the interval at
    which open incidents are repeated."""


Settings = Slack | Webhook | Alertmanager
KINDS: Mapping[str, type[Settings]] = {"slack": Slack, "webhook": Webhook, "alertmanager": Alertmanager}


def read(tables: Mapping[str, Any]) -> dict[str, Settings]:
    """The destinations of the table [workers.alerts.destinations], by name.

    Raises ConfigError, one line that names the table and the key, and never the value of a secret.
    """
    return {name: _read_one(name, given, place_of(name)) for name, given in tables.items()}


def place_of(name: str) -> str:
    """Where the settings of a destination lie, for errors."""
    return f"[workers.alerts.destinations.{name}]"


def _read_one(name: str, given: Any, place: str) -> Settings:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{place}: the name needs 1 to 100 letters, digits, dots, dashes and underscores")
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place}: this is to be a table")
    cls = KINDS.get(kind) if isinstance(kind := given.get("kind"), str) else None
    if cls is None:
        raise ConfigError(f"{place}: kind must be one of log, {', '.join(KINDS)}")  # log is the worker's own
    settings: Settings = table(place, given, cls, dec_hook=_secret)
    _check(settings, place)
    return settings


def _secret(wanted: type, value: Any) -> Any:
    if wanted is Secret and isinstance(value, str) and value:
        return Secret(value)
    raise ValueError("expected a text")


def _check(settings: Settings, place: str) -> None:
    try:
        for key in ("url", "proxy", "authorization", "secret"):
            secret.check(settings, key, needed=key == "url")
    except ValueError as error:
        raise ConfigError(f"{place}: {error}") from None
    try:
        Allow.of(settings.allow)
    except ValueError as error:
        raise ConfigError(f"{place}: allow: {error}") from None
    if settings.url is not None:
        _check_url(settings, settings.url, place)


def _check_url(settings: Settings, url: Secret, place: str) -> None:
    """Raises ConfigError, which does not repeat the URL, for one that is none to post to."""
    wrong = flaw(url.reveal(), Allow.of(settings.allow), plain_http=settings.plain_http)
    if wrong is not None:
        raise ConfigError(f"{place}: the URL {wrong}")
    if isinstance(settings, Alertmanager) and set("?#") & set(url.reveal()):
        raise ConfigError(f"{place}: the URL is to be that of Alertmanager's front page, without ? and #")


@dataclass(frozen=True)
class Secrets:
    """What a destination needs and its table does not show."""

    url: Secret
    proxy: Secret | None
    authorization: Secret | None
    keys: tuple[Key, ...]


def secrets(name: str, settings: Settings) -> Secrets:
    """Read them. Raises ConfigError, one line, when one is not there or is none, or when httpx2 is not installed."""
    place = place_of(name)
    need_http(place, "alerts")
    url = secret.read(place, settings, "url")
    assert url is not None  # read() has seen to that
    _check_url(settings, url, place)
    signing = secret.read(place, settings, "secret")
    try:
        keys = tuple(Key(Secret(one)) for one in signing.reveal().split()) if signing else ()
    except ValueError as error:
        raise ConfigError(f"{place}: the secret {error}") from None
    return Secrets(url, secret.read(place, settings, "proxy"), secret.authorization(place, settings), keys)
