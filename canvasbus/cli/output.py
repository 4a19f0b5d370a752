"""What the commands print, in one of three forms.

    on a terminal         aligned tables and one-line records with a little colour, fitted to its width
    piped                 the same without colour, nothing cut
    --json                one JSON object a line

Tables are our own: rich cuts names in two where the terminal is narrow, or pads lines until they wrap.

Text that came off the bus is somebody else's: everything that is not printable (control characters, escape sequences,
marks that reverse the writing direction) is written as an escape before a terminal sees it. Notes, warnings and progress
go to stderr, so that stdout can be piped.
"""

import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TextIO
from unicodedata import combining, east_asian_width

import msgspec

from canvasbus.cli.arguments import close_outlet
from canvasbus.operate import words

_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_GAP = 2
_FLEXIBLE_LEAST = 30
NOTHING = "–"
"""Stands in a cell for what is not there."""
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    flexible: bool = False
    """Only the last one may be: it gets the room that is left on a terminal and is cut there. All others stay whole, so
    that names can be copied."""


@dataclass(frozen=True, slots=True)
class Cell:
    """Text with a style, for what shall be seen at once."""

    text: str
    style: str = ""


class Output:
    """Prints for one command."""

    def __init__(self, *, json: bool = False, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self.json = json
        self.stdout = stdout or sys.stdout
        self.stderr = stderr or sys.stderr
        self.acts = False
        """Whether the command does something. It does that to its end, also when nobody reads any more what it says of it: else
        it would end in the middle with nobody knowing, or before it began."""
        self.terminal = self.stdout.isatty()
        self._colour = self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def record(self, value: Any) -> None:
        """One JSON object on a line of its own."""
        text = msgspec.json.encode(value, enc_hook=str).decode()
        self.line(_UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))

    def line(self, text: str = "") -> None:
        """One line on stdout."""
        with self._read_by_somebody(self.stdout):
            print(text, file=self.stdout)

    def wrapped(self, text: str, *, indent: int) -> None:
        """Somebody else's text, broken between words where a terminal is narrow; further lines are indented by two more."""
        text, blank = safe(text), " " * indent
        if not self.terminal:
            self.line(blank + text)
            return
        more = blank + "  "
        for part in textwrap.wrap(
            text, self._width(), initial_indent=blank, subsequent_indent=more, break_on_hyphens=False
        ):
            self.line(part)

    def note(self, text: str) -> None:
        """One line for the person, on stderr."""
        with self._read_by_somebody(self.stderr):
            print(text, file=self.stderr)

    def paint(self, text: str, style: str) -> str:
        """`text` in a style, where the terminal knows colours."""
        codes = ";".join(_STYLES[word] for word in style.split())
        return f"\x1b[{codes}m{text}\x1b[0m" if self._colour and codes else text

    def flush(self) -> None:
        """Hand everything to whoever reads stdout."""
        with self._read_by_somebody(self.stdout):
            self.stdout.flush()

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]]) -> None:
        """A table. Cells are made safe here."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        cells = [[Cell(safe(cell.text), cell.style) for cell in row] for row in cells]
        titles = [Cell(column.title, "bold") for column in columns]
        widths = [max(cell_width(row[at].text) for row in (titles, *cells)) for at in range(len(columns))]
        last, room = widths[-1], sum(widths) + _GAP * (len(columns) - 1)
        spare = self._width() - (room - last) if self.terminal and columns[-1].flexible else last
        if spare >= min(last, _FLEXIBLE_LEAST):
            widths[-1] = min(last, spare)
            for row in (titles, *cells):
                self.line(self._row(columns, widths, row))
            return
        # Too little room for the last column: each row's share of it goes to a line of its own below the row.
        for row in (titles, *cells):
            self.line(self._row(columns[:-1], widths[:-1], row[:-1]))
            if row is not titles and row[-1].text not in ("", NOTHING):
                text = short(f"{columns[-1].title.lower()}: {row[-1].text}", self._width() - 4, words=True)
                self.line("    " + self.paint(text, row[-1].style))

    @contextmanager
    def _read_by_somebody(self, file: TextIO) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            if not self.acts:
                raise
            close_outlet(file)

    def _width(self) -> int:
        return shutil.get_terminal_size().columns

    def _row(self, columns: Sequence[Column], widths: Sequence[int], row: Sequence[Cell]) -> str:
        parts = []
        for cell, width, column in zip(row, widths, columns, strict=True):
            text = short(cell.text, width, words=column.flexible)
            blank = " " * (width - cell_width(text))
            painted = self.paint(text, cell.style) if text else ""
            parts.append(blank + painted if column.right else painted + blank)
        return (" " * _GAP).join(parts).rstrip()


def cell_width(text: str) -> int:
    """Columns that a terminal needs for it: two for East Asian wide characters, none for combining marks."""
    if text.isascii():
        return len(text)
    return sum(2 if east_asian_width(c) in "WF" else 0 if combining(c) else 1 for c in text)


def safe(text: str) -> str:
    """`text` with everything that is not printable as an escape (\\x1b, \\n, \\u202e)."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode() if not "\ud800" <= char <= "\udfff" else f"\\u{ord(char):04x}"


def safe_block(text: str) -> str:
    """The same for text of several lines, whose line ends stay."""
    return "\n".join(safe(line) for line in text.splitlines())


def short(text: str, width: int, *, words: bool = False) -> str:
    """`text`, cut to `width` columns of a terminal; with `words` between two of them, where the last one is not a third of it."""
    if cell_width(text) <= width:
        return text
    while text and cell_width(text) > width - 1:
        text = text[: min(len(text) - 1, width - 1)]
    return (between_words(text) if words else text) + "…"


def between_words(text: str) -> str:
    """What was cut somewhere, without the piece of a word at its end, unless that is more than a third."""
    whole = text.rpartition(" ")[0].rstrip(" ,;:")
    return whole if len(whole) >= len(text) * 2 // 3 else text


def moment(when: datetime | None) -> str:
    """A time that can be pasted into `--from`, to the millisecond."""
    if when is None:
        return NOTHING
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"


def ago(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return NOTHING
    if seconds < 1:
        return "<1s"
    whole = int(seconds)
    for size, unit, smaller_size, smaller in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller_size
            return f"{whole // size}{unit}{f' {rest}{smaller}' if rest else ''}"
    return f"{whole}s"


def size(count: int | None) -> str:
    """Bytes, readable."""
    return NOTHING if count is None else words.size(count)
