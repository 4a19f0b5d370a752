"""A URL as an address, checked when it is given and not when it is first used.

    redis://[user:password@]host[:port][/db]     rediss://… (TLS)     unix://[user:password@]/path.sock[?db=N]
    memory://      private to its bus              memory://name      shared within the process
    off://         the bus is switched off

Options of redis URLs: db, username, password, and for TLS ssl_ca_certs, ssl_certfile, ssl_keyfile,
ssl_cert_reqs=required|none. Anything else is an error: a misspelt option that is ignored costs a night.
"""

import difflib
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, unquote, urlsplit

from canvasbus.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix", "memory", "off")
_OPTIONS = ("db", "username", "password", "ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server is and who we are there."""

    scheme: str
    host: str = "localhost"
    port: int = 6379
    path: str | None = None
    """Unix socket; None: TCP."""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    verify: bool = True
    """The server's certificate is checked."""
    name: str = ""
    """Of a shared memory server."""

    @property
    def tls(self) -> bool:
        return self.scheme == "rediss"

    @property
    def shown(self) -> str:
        """The URL for people and logs, without the password."""
        if self.scheme in ("memory", "off"):
            return f"{self.scheme}://{self.name}"
        user = f"{self.username or ''}{':***' if self.password is not None else ''}"
        at = f"{user}@" if user else ""
        if self.path is not None:
            return f"unix://{at}{self.path}" + (f"?db={self.db}" if self.db else "")
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{at}{host}:{self.port}" + (f"/{self.db}" if self.db else "")


def parse(url: str) -> Address:
    """Read a URL. Raises ConfigError, which never repeats a password."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        said = f"{scheme}://…" if separator else "no scheme://"
        hint = f"; did you mean {near[0]}://?" if separator and near else ""
        raise ConfigError(
            f"the bus URL has {said}; it must begin with one of " + ", ".join(f"{s}://" for s in SCHEMES) + hint
        )
    _refuse_bare_password(url, scheme)
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigError(f"the bus URL ({scheme}://…) cannot be read: {error}") from None
    try:
        port = parts.port
    except ValueError:  # whose text repeats what stands there, which may be the beginning of a password
        raise ConfigError(f"the bus URL ({scheme}://…) cannot be read: its port must be a number up to 65535") from None
    if scheme in ("memory", "off"):
        return Address(scheme, name=(parts.netloc + parts.path).strip("/"))
    options = _options(parts.query, scheme)
    username = unquote(parts.username) if parts.username else options.get("username")
    password = unquote(parts.password) if parts.password is not None else options.get("password")
    common = {
        "db": _db(options.get("db") or (parts.path.strip("/") if scheme != "unix" else "") or "0"),
        "username": username or None,
        "password": password,
    }
    if scheme == "unix":
        if not parts.path.strip("/"):
            raise ConfigError("the bus URL unix:// names no socket: write unix:///path/to/redis.sock")
        return Address(scheme, path=unquote(parts.path), **common)  # type: ignore[arg-type]
    requires = options.get("ssl_cert_reqs", "required")
    if requires not in ("required", "none"):
        raise ConfigError(f"ssl_cert_reqs={requires!r} in the bus URL: use required or none")
    return Address(
        scheme,
        host=parts.hostname or "localhost",
        port=6379 if port is None else port,
        ca_file=options.get("ssl_ca_certs"),
        cert_file=options.get("ssl_certfile"),
        key_file=options.get("ssl_keyfile"),
        verify=requires == "required",
        **common,  # type: ignore[arg-type]
    )


def _refuse_bare_password(url: str, scheme: str) -> None:
    """A / ? or # in a password that is not percent-encoded ends the address too early, and errors would quote the rest."""
    if scheme not in ("redis", "rediss"):
        return
    place, _, query = url.partition("://")[2].partition("?")
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    if "@" in place.partition("/")[2] + place.partition("#")[2] or any("@" in name for name in names):
        raise ConfigError(
            f"the bus URL ({scheme}://…) has an @ behind its address: write / ? # and @ in a password as %2F %3F %23 %40"
        )


def _options(query: str, scheme: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    for name in options:
        if name not in _OPTIONS:
            near = difflib.get_close_matches(name, _OPTIONS, n=1)
            hint = f"; did you mean {near[0]}?" if near else f"; it knows {', '.join(_OPTIONS)}"
            raise ConfigError(f"the bus URL has an unknown option {name!r}{hint}")
        if name.startswith("ssl_") and scheme != "rediss":
            raise ConfigError(f"the option {name} in the bus URL needs rediss://")
    return options


def _db(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"the database in the bus URL must be a number, not {text!r}")
    return int(text)
