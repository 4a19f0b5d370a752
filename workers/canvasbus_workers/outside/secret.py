"""Texts that must not be seen: they have no way into a log, an error or a dead letter but `reveal`.

A setting KEY that is a secret lies in a file, which KEY_file names, or in an environment variable, which KEY_env names; a
URL, which need not be one, may also be given as KEY itself. There is one way at a time. Secrets are read when a worker
starts, and by the doctor.
"""

import binascii
import os
from base64 import b64decode
from pathlib import Path
from typing import NoReturn
from urllib.parse import unquote

from canvasbus.errors import ConfigError


class Secret:
    """A text that shows itself as ***."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text, for the one place that sends it."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a secret is not pickled")


def check(settings: object, key: str, *, needed: bool = False) -> None:
    """Raises ValueError when a secret of the settings is given in two ways, or in none although it is needed."""
    ways = _ways(settings, key)
    if len(ways) > 1:
        raise ValueError(f"{' and '.join(ways)} are both set: keep one")
    if needed and not ways:
        raise ValueError(f"give one of {', '.join(name for name in _names(key) if hasattr(settings, name))}")


def read(place: str, settings: object, key: str) -> Secret | None:
    """A secret of the settings, without white space around it; None: it is not given. `place`: of the settings. Raises
    ConfigError."""
    for name in _ways(settings, key):
        given = getattr(settings, name)
        if name == f"{key}_file":
            return _from_file(f"{place}: {name}", given)
        if name == f"{key}_env":
            return _from_environment(f"{place}: {name}", given)
        return given if isinstance(given, Secret) else Secret(given)
    return None


def authorization(place: str, settings: object) -> Secret | None:
    """The whole value of a header Authorization, like `Bearer …`, from authorization_file or authorization_env; None:
    neither is given. Raises ConfigError."""
    found = read(place, settings, "authorization")
    if found is not None and not (found.reveal().isascii() and found.reveal().isprintable()):
        raise ConfigError(f"{place}: the authorization does not fit into a header: one line of ASCII is wanted")
    return found


def credentials(authorization: str) -> tuple[str, ...]:
    """What a header `Basic …` is made of, and whoever checks it may repeat in plain words: `name:password`, and the password.
    Empty: it is of another scheme."""
    scheme, _, packed = authorization.partition(" ")
    if scheme.lower() != "basic":
        return ()
    try:
        plain = b64decode(packed.strip()).decode(errors="replace")
    except binascii.Error:
        return ()
    return plain, plain.partition(":")[2]


def _names(key: str) -> tuple[str, str, str]:
    return key, f"{key}_file", f"{key}_env"


def _ways(settings: object, key: str) -> list[str]:
    """Those in which it is given."""
    return [name for name in _names(key) if getattr(settings, name, None)]


def _from_file(place: str, path: str) -> Secret:
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"{place} names {path}, which cannot be read: {said}") from None
    if not text:
        raise ConfigError(f"{place} names {path}, which is empty")
    return Secret(text)


def _from_environment(place: str, name: str) -> Secret:
    text = os.environ.get(name, "").strip()
    if not text:
        raise ConfigError(f"{place} names the environment variable {name}, which is not set")
    return Secret(text)


def repeats(text: str, *secrets: str) -> bool:
    """Whether eight characters in a row of a secret stand in `text`, for example in an answer that repeats its request:
    as they are, percent-encoded, or with the slashes of PHP's JSON."""
    plain = unquote(text.replace("\\/", "/"))
    return any(
        one[at : at + 8] in told
        for secret in secrets
        for one, told in ((secret, text), (unquote(secret), plain))
        for at in range(max(1, len(one) - 7))
        if one
    )
