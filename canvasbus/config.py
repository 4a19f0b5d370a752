"""Settings of the programs: flag > environment > canvasbus.toml > default.

One file, `canvasbus.toml` in the working directory or wherever CANVASBUS_CONFIG points, and one variable a setting,
`CANVASBUS_<SETTING>`; a secret may also lie in a file that `CANVASBUS_<SETTING>_FILE` names. An empty variable counts
as not set, because compose files and charts pass `${X:-}` on.

A key that nobody knows is an error: a misspelt `partitons = 4` that is silently ignored costs a night. The one thing
that must be let through are the variables that Kubernetes sets in every pod for a Service that happens to be called
`canvasbus` or `canvasbus-…` (CANVASBUS_SERVICE_HOST, CANVASBUS_PORT_6379_TCP, …).

Every value keeps where it came from, for `canvasbus config show` and for error messages. The library itself reads none
of this: a `Producer` does what its arguments say, and asks here for the URL alone when it was given none.
"""

import difflib
import os
import re
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from canvasbus.choices import deeper, with_choices, with_keys
from canvasbus.errors import ConfigError

FILE = "canvasbus.toml"
PREFIX = "CANVASBUS_"
SECRETS = frozenset({"url"})
"""Settings that may hold a password: shown redacted, and readable from a file named by CANVASBUS_<SETTING>_FILE."""

DEFAULT = "default"

_FOR_TESTS = ("CANVASBUS_TEST_", "CANVASBUS_REQUIRE_")
_FROM_KUBERNETES = re.compile(
    r"CANVASBUS_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)

T = TypeVar("T", bound=Struct)

# The rules of wire.keys, repeated because only here the error can say where the value came from.
Name = Annotated[str, Meta(pattern=r"^[A-Za-z0-9_.\-]{1,100}$")]
Positive = Annotated[int, Meta(ge=1)]


class Settings(Struct, frozen=True, kw_only=True):
    """What the programs can be told."""

    url: str | None = None
    """The bus: redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, memory:// or off://."""
    namespace: Name = "canvasbus"
    """Prefix of all keys on the server: buses with different namespaces do not see each other."""
    partitions: Annotated[int, Meta(ge=1, le=4096)] = 1
    """How many partitions the namespace has; the same number in every process."""
    source: str = ""
    """Who publishes, in every event's `source`. Default: host/program."""
    max_event_bytes: Positive = 1024 * 1024
    """Size limit of one encoded event, in bytes."""
    buffer_bytes: Positive = 64 * 1024 * 1024
    """Encoded events that may wait for the server, in bytes."""
    grace: Annotated[float, Meta(ge=0, le=86400)] = 25.0
    """Seconds for which running handlers may go on after SIGTERM (Kubernetes kills after 30)."""
    park: Annotated[float, Meta(ge=0, le=366 * 86400)] = 86400.0
    """Seconds for which an event of a newer version than any worker knows waits before it goes to the dead letters."""
    max_block: Annotated[float, Meta(ge=1, le=86400)] = 60.0
    """Seconds for which a handler may block a worker's loop; then the worker counts as stuck and ends."""
    log_level: Literal["debug", "info", "warning", "error", "critical"] = "info"
    """The least severe level that is logged."""
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: readable lines on a terminal, one JSON object a line elsewhere."""
    modules: tuple[str, ...] = ()
    """Modules that the programs import so that your own event types are known to them."""

    def __repr__(self) -> str:
        shown = (f"{key}={redacted(value) if key in SECRETS and value else value!r}" for key, value in _items(self))
        return f"Settings({', '.join(shown)})"


_FIELDS = {field.name: field.type for field in msgspec.structs.fields(Settings)}
KEYS = tuple(_FIELDS)


@dataclass(frozen=True)
class Loaded:
    """The settings in force and where each came from."""

    settings: Settings
    origins: Mapping[str, str]
    """Key → `--url`, `CANVASBUS_URL`, `/srv/app/canvasbus.toml` or `default`."""
    workers: Mapping[str, Mapping[str, Any]]
    """The tables [workers.NAME] as they lie in the file; each worker reads its own."""
    file: Path | None
    """The file that was read; None: there is none."""

    def require_url(self, command: str) -> str:
        """The URL. Raises ConfigError, naming the three ways to set one, when there is none."""
        if self.settings.url is None:
            raise ConfigError(
                f"{command} needs to know the bus: give --url redis://host:6379, set CANVASBUS_URL, "
                f'or write url = "redis://host:6379" into {FILE}'
            )
        return self.settings.url

    def blame(self, key: str, error: Exception) -> ConfigError:
        """`error` with the setting that caused it and where that came from."""
        return ConfigError(f"{error} ({key} from {self.origins[key]})")


def load(flags: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None) -> Loaded:
    """Read the settings. `flags` maps settings to what the command line gave, None for what it did not.

    Raises ConfigError, which names the key and where its value came from, for unknown keys and wrong values.
    """
    environ = os.environ if environ is None else environ
    values: dict[str, Any] = {}
    origins = dict.fromkeys(KEYS, DEFAULT)
    path = _find(environ)
    workers: Mapping[str, Mapping[str, Any]] = {}
    if path is not None:
        table = _read(path)
        workers = _workers(table.pop("workers", {}), path)
        for key, value in table.items():
            if key not in _FIELDS:
                raise ConfigError(f"{path}: unknown key {key!r}{_near(key, (*KEYS, 'workers'))}")
            values[key], origins[key] = _convert(key, value, str(path), strict=True), str(path)
    for name, (key, text) in _variables(environ).items():
        values[key], origins[key] = _convert(key, text, name, strict=False), name
    for key, value in (flags or {}).items():
        if value is not None:
            flag = "--" + key.replace("_", "-")
            values[key], origins[key] = _convert(key, value, flag, strict=False), flag
    if not values.get("source"):
        values["source"], origins["source"] = default_source(), DEFAULT
    return Loaded(Settings(**values), origins, workers, path)


def section(worker: str, type: type[T], loaded: Loaded | None = None) -> T:
    """A worker's own settings: the table [workers.NAME] of canvasbus.toml as `type`, a msgspec Struct whose fields have
    defaults. Call it in the worker's lifespan, so that a worker with wrong settings does not start.

    Raises ConfigError, which names the file and the key, for unknown keys and wrong values.
    """
    loaded = load() if loaded is None else loaded
    try:
        return table(f"[workers.{worker}]", loaded.workers.get(worker, {}), type)
    except ConfigError as error:  # which knows its place in the file but not the file
        raise ConfigError(f"{loaded.file}: {error}") from None


def table(place: str, given: Any, type: type[T], *, dec_hook: Callable[[Any, Any], Any] | None = None) -> T:
    """One table of settings as `type`, a msgspec Struct. Raises ConfigError, which begins with `place` and names the key,
    for unknown keys, of which the most similar one is told, and wrong values. `dec_hook`: as msgspec's."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"{place}: this is to be a table")
    tag = type.__struct_config__.tag_field
    known = (*((tag,) if tag else ()), *(field.encode_name for field in msgspec.structs.fields(type)))
    for key in given:
        if key not in known:
            inner = [f"{place.removesuffix(']')}.{one}]" for one in deeper(key, type)]
            hint = f"; it belongs into {' or '.join(inner)}" if inner else _near(key, known)
            raise ConfigError(f"{place}: unknown key {key!r}{hint}")

    def convert(table: Any) -> T:
        return msgspec.convert(table, type, dec_hook=dec_hook)

    try:
        return convert(given)
    except msgspec.ValidationError as error:
        said = with_keys(with_choices(error, type), given, convert)
        raise ConfigError(f"{place}: {_plainer(said)}") from None


def _plainer(error: str) -> str:
    """msgspec's `Expected `int` >= 1 - at `$.window_items`` with the key first."""
    said, _, path = error.partition(" - at ")
    path, _, more = path.removeprefix("`").partition("`")
    key = path.removeprefix("$").removeprefix(".")
    more = more.replace(": use ", "; use ", 1)
    return f"{key}: {said[:1].lower() + said[1:]}{more}".replace("`", "") if key else said


def default_source() -> str:
    """host/program, for example `trainer-7/train`."""
    program = Path(sys.argv[0] if sys.argv else "")
    name = program.parent.name if program.stem == "__main__" else program.stem  # python -m train
    source = f"{socket.gethostname()}/{name or 'python'}"
    return source.encode(errors="backslashreplace").decode()  # a file's name may be no text


def redacted(url: str) -> str:
    """`url` without its password; total, so that it also serves for URLs that nothing can parse."""
    head, separator, rest = url.partition("://")
    if not separator:
        head, rest = "", url
    authority, at, tail = rest.rpartition("@")
    if at and ":" in authority:
        rest = f"{authority.partition(':')[0]}:***@{tail}"
    return head + separator + re.sub(r"(?i)(password=)[^&#\s]*", r"\1***", rest)


def _items(settings: Settings) -> list[tuple[str, Any]]:
    return [(key, getattr(settings, key)) for key in KEYS]


def _find(environ: Mapping[str, str]) -> Path | None:
    named = environ.get("CANVASBUS_CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"CANVASBUS_CONFIG names {named}, which is not a file")
        return Path(named)
    try:
        path = Path(FILE).absolute()
        return path if path.is_file() else None
    except FileNotFoundError:
        raise ConfigError("the working directory is gone: change to one that exists") from None
    except PermissionError:
        raise ConfigError(
            f"this user may not look into the working directory for {FILE}: change to another, or name a file in CANVASBUS_CONFIG"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        table = msgspec.toml.decode(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    assert isinstance(table, dict)
    return table


def _workers(table: Any, path: Path) -> Mapping[str, Mapping[str, Any]]:
    if not isinstance(table, dict) or not all(isinstance(inner, dict) for inner in table.values()):
        raise ConfigError(f"{path}: workers: write one table for each worker, [workers.NAME]")
    return table


def _variables(environ: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Variable → (key, value) for everything of ours in the environment."""
    found: dict[str, tuple[str, str]] = {}
    known = [PREFIX + key.upper() for key in KEYS]
    files = [f"{PREFIX}{key.upper()}_FILE" for key in sorted(SECRETS)]
    for name in sorted(environ):
        text = environ[name].strip()
        if not name.startswith(PREFIX) or not text or name == "CANVASBUS_CONFIG":
            continue
        if name in known:
            found[name] = name.removeprefix(PREFIX).lower(), text
        elif name in files:
            direct = name.removesuffix("_FILE")
            if environ.get(direct, "").strip():
                raise ConfigError(f"{direct} and {name} are both set: keep one")
            found[name] = direct.removeprefix(PREFIX).lower(), _secret(name, text)
        elif not name.startswith(_FOR_TESTS) and not _FROM_KUBERNETES.fullmatch(name):
            raise ConfigError(f"unknown environment variable {name}{_near(name, (*known, *files, 'CANVASBUS_CONFIG'))}")
    return found


def environment(*keys: str) -> Mapping[str, Any]:
    """What the environment alone says of these settings, as far as it does: for a Producer that is not told its bus.

    Raises ConfigError for values that cannot be meant, when a secret is given twice or its file cannot be read.
    """
    of_keys = {PREFIX + key.upper() for key in keys} | {f"{PREFIX}{key.upper()}_FILE" for key in SECRETS & set(keys)}
    ours = {name: os.environ[name] for name in of_keys if name in os.environ}
    return {key: _convert(key, text, name, strict=False) for name, (key, text) in _variables(ours).items()}


def _secret(name: str, path: str) -> str:
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name} names {path}, which cannot be read: {getattr(error, 'strerror', error)}") from None
    if not text:
        raise ConfigError(f"{name} names {path}, which is empty")
    return text


def _convert(key: str, value: Any, origin: str, *, strict: bool) -> Any:
    if isinstance(value, str):
        if key == "modules" and not strict:
            value = [part.strip() for part in value.split(",") if part.strip()]
        elif key in ("log_level", "log_format"):
            value = value.lower()
    try:
        return msgspec.convert(value, _FIELDS[key], strict=strict)
    except msgspec.ValidationError as error:
        shown = "" if key in SECRETS else f"={value!r}"
        raise ConfigError(f"{key}{shown} from {origin}: {_expected(key, str(error))}") from None


_PLAINLY = {
    "namespace": "use 1 to 100 letters, digits, dots, dashes and underscores",
    "log_level": "use debug, info, warning, error or critical",
    "log_format": "use auto, json or console",
}


def _expected(key: str, error: str) -> str:
    return _PLAINLY.get(key) or (error[:1].lower() + error[1:]).replace("`", "").removesuffix(", got str")


def _near(name: str, known: tuple[str, ...]) -> str:
    bare = {each.removeprefix(PREFIX): each for each in known}  # the common prefix would make everything look alike
    close = difflib.get_close_matches(name.removeprefix(PREFIX), bare, n=1)
    return f"; did you mean {bare[close[0]]}?" if close else f"; known are {', '.join(known)}"
