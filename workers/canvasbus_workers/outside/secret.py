"""Texts that must not be seen: they have no way into a log, an error or a dead letter but `reveal`."""

import os
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


def from_file(place: str, path: str) -> Secret:
    """What a file holds, without white space around it. `place`: which setting names it. Raises ConfigError."""
    try:
        text = Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or "it is not text"
        raise ConfigError(f"{place} names {path}, which cannot be read: {said}") from None
    if not text:
        raise ConfigError(f"{place} names {path}, which is empty")
    return Secret(text)


def from_environment(place: str, name: str) -> Secret:
    """What a variable holds, without white space around it. Raises ConfigError."""
    text = os.environ.get(name, "").strip()
    if not text:
        raise ConfigError(f"{place} names the environment variable {name}, which is not set")
    return Secret(text)


def one_of(place: str, key: str, given: Secret | None, file: str | None, variable: str | None) -> Secret | None:
    """The secret that one of three settings gives; None: none does. Raises ConfigError."""
    if file is not None:
        return from_file(f"{place}: {key}_file", file)
    if variable is not None:
        return from_environment(f"{place}: {key}_env", variable)
    return given


def fits_a_header(secret: Secret) -> bool:
    """One line of ASCII."""
    text = secret.reveal()
    return text.isascii() and text.isprintable()


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
