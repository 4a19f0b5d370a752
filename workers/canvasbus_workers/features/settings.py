"""What the features worker can be told: the table [workers.features] of canvasbus.toml, with a table for each sink."""

import errno
import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta, Struct

from canvasbus.errors import ConfigError
from canvasbus_workers.outside import secret
from canvasbus_workers.outside.guard import flaw
from canvasbus_workers.outside.library import need_http
from canvasbus_workers.outside.secret import Secret

Seconds = Annotated[float, Meta(ge=0, le=100 * 366 * 86400)]
Timeout = Annotated[float, Meta(gt=0, le=50)]
Name = Annotated[str, Meta(min_length=1)]


class RedisSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="redis"):
    """The online store on a Redis or Valkey server."""

    url: str = ""
    """Another server than the bus's own."""
    url_file: str = ""
    """A file with that URL, where it holds a password."""
    url_env: str = ""
    """An environment variable with it."""
    namespace: Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.\-]{1,100}$")] | None = None
    """What its keys begin with; default: the namespace of the bus."""
    ttl_seconds: Seconds = 30 * 86400.0
    """Seconds after its event time for which a row is kept; 0: for ever."""
    history: Annotated[int, Meta(ge=0, le=10_000_000)] = 10_000
    """Rows that the history of a view holds at least; 0: there is none."""
    timeout_seconds: Timeout = 5.0
    """Seconds for an answer."""

    def __post_init__(self) -> None:
        secret.check(self, "url")
        if urlsplit(self.url).password is not None:
            raise ValueError("the url has a password in it: give it by url_file or url_env")


class SqliteSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="sqlite"):
    """The offline log in a file."""

    path: Name
    """The file, on a local disk."""


class FeastView(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where Feast takes the rows of a feature set."""

    push_source: Name
    """The name of its push source."""
    entity: Name = "entity"
    """The column of the entity: its join key."""
    columns: Mapping[str, Name] = msgspec.field(default_factory=dict)
    """Feature → its name in Feast, where that is another. Empty: every feature is sent under its own name; else only
    these are sent."""


class FeastSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="kind", tag="feast"):
    """Feast's feature server."""

    url: str
    """Its front page, for example http://feast:6566."""
    views: Mapping[str, FeastView] = msgspec.field(default_factory=dict)
    """Feature set → where it goes; rows of others are not sent."""
    to: Annotated[str, Meta(pattern="^(online|offline|online_and_offline)$")] = "online"
    """Which of Feast's stores."""
    timestamp: Name = "event_timestamp"
    """The column of the event time."""
    timeout_seconds: Timeout = 10.0
    """Seconds for an answer."""
    authorization_file: str = ""
    """A file with the whole value of a header Authorization, for example `Bearer …`."""
    authorization_env: str = ""
    """An environment variable with it."""

    def __post_init__(self) -> None:
        wrong = flaw(self.url) or ("has more than a path" if set("?#") & set(self.url) else None)
        if wrong is not None:
            raise ValueError(f"the url {wrong}")
        secret.check(self, "authorization")


Sink = RedisSettings | SqliteSettings | FeastSettings


class Settings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The table [workers.features]."""

    sinks: Annotated[Mapping[str, Sink], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: {"online": RedisSettings()}
    )
    """Name → where rows go; every row goes to each of them."""
    ahead_seconds: Seconds = 3600.0
    """Seconds that the event time of a row may lie in the future; rows further ahead go to the dead letters."""


@dataclass(frozen=True)
class Secrets:
    """What a sink needs and its table does not show."""

    url: Secret | None = None
    authorization: Secret | None = None


def secrets(name: str, sink: Sink) -> Secrets:
    """Read them. Raises ConfigError, one line, when one is not there or is none, or when httpx2 is needed and not installed."""
    place = place_of(name)
    if isinstance(sink, FeastSettings):
        need_http(place, "features")
        return Secrets(authorization=secret.authorization(place, sink))
    return Secrets(url=secret.read(place, sink, "url"))


def place_of(name: str) -> str:
    """Where the settings of a sink lie, for errors."""
    return f"[workers.features.sinks.{name}]"


def _check_file(place: str, path: Path) -> None:
    import sqlite3

    if path.is_dir():
        raise ConfigError(f"{place}: {path} cannot be opened: it is a folder")
    if path.exists():
        try:
            with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as db:
                db.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            raise ConfigError(f"{place}: {path} cannot be opened: {error}") from None
    elif not path.parent.is_dir():
        raise ConfigError(f"{place}: {path} cannot be made: there is no folder {path.parent}")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise ConfigError(f"{place}: {path} cannot be written: {os.strerror(errno.EACCES)}")


def check(settings: Settings) -> str:
    """What the doctor says about them. Raises ConfigError for a secret or a library that is missing, and for a file that
    cannot be opened; it makes none."""
    for name, sink in settings.sinks.items():
        secrets(name, sink)
        if isinstance(sink, SqliteSettings):
            _check_file(place_of(name), Path(sink.path).absolute())
    return f"{len(settings.sinks)} sink{'' if len(settings.sinks) == 1 else 's'}"
