"""What both programs do before they know what they are asked for: read their arguments, and have somewhere to write."""

import argparse
import difflib
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn, TextIO


def open_outlets() -> None:
    """Give a program that was started without stdout or stderr (`>&-`, some supervisors) the null device for it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  as long as the program lives


def close_outlet(outlet: TextIO) -> None:
    """Let nothing more be written where nobody reads, not even by the interpreter's exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, outlet.fileno())
    os.close(null)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose errors are one line and know what was meant."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def error(self, message: str) -> NoReturn:
        """Print one line and leave with 2."""
        choice = re.search(r"invalid choice: '(.*)' \(choose from (.*)\)", message)
        if choice:
            known = re.findall(r"[\w-]+", choice[2])
            message = f"there is no {choice[1]!r}{near(choice[1], known) or '; there are ' + ', '.join(known)}"
        print(f"{self.prog}: {message} (see {self.prog} --help)", file=sys.stderr)
        raise SystemExit(2)

    def refuse_unknown(self, rest: list[str]) -> NoReturn:
        """Say which arguments nobody knows."""
        hints = [near(word, list(self._option_string_actions)) for word in rest if word.startswith("-")]
        self.error(f"unknown argument {' '.join(rest)}{next(filter(None, hints), '')}")


MOST = 1_000_000_000
"""What `-n` takes at most: more is no list that anybody reads, and more digits than a server takes are its own error."""


def number(text: str) -> int:
    """The N of `-n`, from 1 on."""
    if not re.fullmatch(r"[\d_]{1,20}", text, re.ASCII) or not 1 <= (found := int(text.replace("_", "") or 0)) <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r}: use a number, at least 1 and at most {MOST:,}")
    return found


def seed(text: str) -> int:
    """A number that a random generator takes."""
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: use a whole number from 0")
    return int(text)


def near(word: str, known: list[str]) -> str:
    """A question after the known word that comes closest; empty: none does."""
    close = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {close[0]}?" if close else ""
