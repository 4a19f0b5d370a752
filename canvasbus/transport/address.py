"""A URL as an address, checked when it is given and not when it is first used.

    redis://[user:password@]host[:port][/db]     rediss://… (TLS)     unix://[user:password@]/path.sock[?db=N]
    redis+sentinel://[user:password@]host[:26379],host[:26379]…/MASTER[/db]       rediss+sentinel://… (TLS to all of them)
    memory://      private to its bus              memory://name      shared within the process
    off://         the bus is switched off

Options of redis URLs: db, username, password, and for TLS ssl_ca_certs, ssl_certfile, ssl_keyfile,
ssl_cert_reqs=required|none; for sentinels that want a password of their own sentinel_username, sentinel_password.
Anything else is an error: a misspelt option that is ignored costs a night.
"""

import difflib
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from canvasbus.errors import ConfigError

SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel", "memory", "off")
_TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")
_SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")
_OPTIONS = ("db", "username", "password", *_TLS_OPTIONS, *_SENTINEL_OPTIONS)
SENTINEL_PORT = 26379


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
    sentinels: tuple[tuple[str, int], ...] = ()
    """Host and port of each; then `host` and `port` mean nothing, and credentials and database are the master's."""
    master: str = ""
    """The name under which the sentinels know the master."""
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)

    @property
    def tls(self) -> bool:
        return self.scheme.startswith("rediss")

    def sentinel(self, number: int) -> "Address":
        """The address of one of the sentinels."""
        host, port = self.sentinels[number]
        return self._plain(host, port, db=0, username=self.sentinel_username, password=self.sentinel_password)

    def master_at(self, host: str, port: int) -> "Address":
        """The address of the master, which the sentinels have told."""
        return self._plain(host, port, db=self.db, username=self.username, password=self.password)

    def _plain(self, host: str, port: int, *, db: int, username: str | None, password: str | None) -> "Address":
        scheme = "rediss" if self.tls else "redis"
        found = replace(self, scheme=scheme, host=host, port=port, sentinels=(), master="", db=db)
        return replace(found, username=username, password=password, sentinel_username=None, sentinel_password=None)

    @property
    def shown(self) -> str:
        """The URL for people and logs, without the password."""
        if self.scheme in ("memory", "off"):
            return f"{self.scheme}://{self.name}"
        user = f"{self.username or ''}{':***' if self.password is not None else ''}"
        at = f"{user}@" if user else ""
        if self.path is not None:
            return f"unix://{at}{self.path}" + (f"?db={self.db}" if self.db else "")
        db = f"/{self.db}" if self.db else ""
        if self.sentinels:
            return f"{self.scheme}://{at}{','.join(place(*one) for one in self.sentinels)}/{self.master}{db}"
        return f"{self.scheme}://{at}{place(self.host, self.port)}{db}"


def place(host: str, port: int) -> str:
    """host:port, as it stands in a URL."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse(url: str) -> Address:
    """Read a URL. Raises ConfigError, which never repeats a password."""
    if not isinstance(url, str):
        raise ConfigError(f"the bus URL must be a text, not a {type(url).__name__}")
    url = url.strip()
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in SCHEMES:
        near = difflib.get_close_matches(scheme, SCHEMES, n=1)
        said = f"{scheme}://…" if separator else "no scheme://"
        hint = f"; did you mean {near[0]}://?" if separator and near else ""
        raise ConfigError(
            f"the bus URL has {said}; it must begin with one of " + ", ".join(f"{s}://" for s in SCHEMES) + hint
        )
    _refuse_bare_password(url, scheme)
    if scheme.endswith("+sentinel"):
        return _sentinels(url, scheme)
    parts = _split(url, scheme)
    try:
        port = parts.port
    except ValueError:  # whose text repeats what stands there, which may be the beginning of a password
        raise ConfigError(f"the bus URL ({scheme}://…) cannot be read: its port must be a number up to 65535") from None
    if scheme in ("memory", "off"):
        return Address(scheme, name=(parts.netloc + parts.path).strip("/"))
    options = _options(parts.query, scheme)
    common = _common(options, parts.username, parts.password, parts.path.strip("/") if scheme != "unix" else "")
    if scheme == "unix":
        if not parts.path.strip("/"):
            raise ConfigError("the bus URL unix:// names no socket: write unix:///path/to/redis.sock")
        path = unquote(parts.path)
        if "\0" in path:
            raise ConfigError("the bus URL (unix://…) cannot be read: no path has a NUL in it")
        return Address(scheme, path=path, **common)
    host = parts.hostname or "localhost"
    if not _may_be_looked_up(host):
        raise ConfigError(
            f"the bus URL ({scheme}://…) names no host: between two dots of a name are 1 to 63 characters; is a part of it "
            "missing?"
        )
    return Address(scheme, host=host, port=6379 if port is None else port, **common, **_tls(options))


def _may_be_looked_up(host: str) -> bool:
    """Whether the system takes this name at all: what it does not take raises UnicodeError whenever one connects."""
    try:
        host.encode("idna")
    except UnicodeError:
        return False
    return True


def _split(url: str, scheme: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:  # its text may repeat the password
        raise ConfigError(
            f"the bus URL ({scheme}://…) cannot be read: look for a bracket without its partner, and for letters in host, "
            "user or password that must be percent-encoded"
        ) from None


def _sentinels(url: str, scheme: str) -> Address:
    parts = _split(url.replace("[", "%5B").replace("]", "%5D"), scheme)  # whose brackets would mean the one host
    options = _options(parts.query, scheme)
    credentials, _, places = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    master, _, db = parts.path.strip("/").partition("/")
    sentinels = tuple(_host_and_port(one, scheme) for one in unquote(places).split(","))
    if not master:
        raise ConfigError(
            f"the bus URL ({scheme}://…) names no master: write {scheme}://HOST:{SENTINEL_PORT},HOST:{SENTINEL_PORT}/MASTER, "
            "with the name behind `sentinel monitor` in the sentinels' configuration"
        )
    return Address(
        scheme,
        sentinels=sentinels,
        master=unquote(master),
        sentinel_username=options.get("sentinel_username"),
        sentinel_password=options.get("sentinel_password"),
        **_common(options, username or None, password if ":" in credentials else None, db),
        **_tls(options),
    )


def _host_and_port(text: str, scheme: str) -> tuple[str, int]:
    try:
        one = urlsplit(f"//{text}")
        host, port = one.hostname, one.port
    except ValueError:
        host, port = None, None
    if not host or one.path or not _may_be_looked_up(host):
        raise ConfigError(
            f"the bus URL ({scheme}://…) has a sentinel whose address cannot be read: write HOST or HOST:PORT, with "
            "commas between several"
        )
    return host, SENTINEL_PORT if port is None else port


def _common(options: dict[str, str], username: str | None, password: str | None, db: str) -> dict[str, Any]:
    return {
        "db": _db(options.get("db") or db or "0"),
        "username": (unquote(username) if username else options.get("username")) or None,
        "password": unquote(password) if password is not None else options.get("password"),
    }


def _tls(options: dict[str, str]) -> dict[str, Any]:
    requires = options.get("ssl_cert_reqs", "required")
    if requires not in ("required", "none"):
        raise ConfigError(f"ssl_cert_reqs={requires!r} in the bus URL: use required or none")
    return {
        "ca_file": options.get("ssl_ca_certs"),
        "cert_file": options.get("ssl_certfile"),
        "key_file": options.get("ssl_keyfile"),
        "verify": requires == "required",
    }


def _refuse_bare_password(url: str, scheme: str) -> None:
    """A / ? or # in a password that is not percent-encoded ends the address too early, and errors would quote the rest."""
    if scheme in ("unix", "memory", "off"):
        return
    before, _, query = url.partition("://")[2].partition("?")
    names = [name for name, _ in parse_qsl(query, keep_blank_values=True)]
    if "@" in before.partition("/")[2] + before.partition("#")[2] or any("@" in name for name in names):
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
        if name in _TLS_OPTIONS and not scheme.startswith("rediss"):
            secure = "rediss+sentinel" if scheme.endswith("+sentinel") else "rediss"
            raise ConfigError(f"the option {name} in the bus URL needs {secure}://")
        if name in _SENTINEL_OPTIONS and not scheme.endswith("+sentinel"):
            raise ConfigError(f"the option {name} in the bus URL needs redis+sentinel://")
    return options


def _db(text: str) -> int:
    if not text.isdecimal():
        raise ConfigError(f"the database in the bus URL must be a number, not {text!r}")
    return int(text)
