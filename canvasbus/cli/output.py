"""What the commands print, in one of three forms.

    on a terminal         tables by rich, one-line records with a little colour
    piped, or no rich     the same tables as aligned plain text
    --json                one JSON object a line

Text that came off the bus is somebody else's: everything that is not printable (control characters, escape sequences,
marks that reverse the writing direction) is written as an escape before a terminal sees it. Notes, warnings and progress
go to stderr, so that stdout can be piped.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TextIO

import msgspec

_UNSAFE_IN_JSON = re.compile("[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]")
_GAP = 2
_FLEXIBLE_LEAST = 16
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    title: str
    right: bool = False
    flexible: bool = False
    """Gets the room that is left on a terminal and is cut there; all others stay whole, so that names can be copied."""


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
        self.terminal = self.stdout.isatty()
        self._colour = self.terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"

    def record(self, value: Any) -> None:
        """One JSON object on a line of its own."""
        text = msgspec.json.encode(value, enc_hook=str).decode()
        self.line(_UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", text))

    def line(self, text: str = "") -> None:
        """One line on stdout."""
        print(text, file=self.stdout)

    def note(self, text: str) -> None:
        """One line for the person, on stderr."""
        print(text, file=self.stderr)

    def paint(self, text: str, style: str) -> str:
        """`text` in a style, where the terminal knows colours."""
        codes = ";".join(_STYLES[word] for word in style.split())
        return f"\x1b[{codes}m{text}\x1b[0m" if self._colour and codes else text

    def flush(self) -> None:
        """Hand everything to whoever reads stdout."""
        self.stdout.flush()

    def table(self, columns: Sequence[Column], rows: Iterable[Sequence[Cell | str]]) -> None:
        """A table. Cells are made safe here."""
        cells = [[cell if isinstance(cell, Cell) else Cell(cell) for cell in row] for row in rows]
        cells = [[Cell(safe(cell.text), cell.style) for cell in row] for row in cells]
        if not (self.terminal and self._rich(columns, cells)):
            self._plain(columns, cells)

    def _rich(self, columns: Sequence[Column], rows: list[list[Cell]]) -> bool:
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ImportError:
            return False
        natural = _widths(columns, rows)
        fixed = sum(width + _GAP for width, column in zip(natural, columns, strict=True) if not column.flexible)
        console = Console(file=self.stdout, highlight=False)
        # Narrower than that, the terminal may wrap the lines: better than names cut in two.
        console.width = max(console.width, fixed + _FLEXIBLE_LEAST)
        table = Table(box=None, header_style="bold", padding=(0, _GAP, 0, 0), pad_edge=False)
        for column, width in zip(columns, natural, strict=True):
            table.add_column(
                column.title,
                justify="right" if column.right else "left",
                no_wrap=True,
                overflow="ellipsis",
                width=min(width, console.width - fixed) if column.flexible else width,
            )
        for row in rows:
            table.add_row(*(Text(cell.text, style=cell.style) for cell in row))
        console.print(table)
        return True

    def _plain(self, columns: Sequence[Column], rows: list[list[Cell]]) -> None:
        widths = _widths(columns, rows)
        for texts in [[column.title for column in columns], *([cell.text for cell in row] for row in rows)]:
            parts = [
                text.rjust(width) if column.right else text.ljust(width)
                for text, width, column in zip(texts, widths, columns, strict=True)
            ]
            self.line("  ".join(parts).rstrip())


def _widths(columns: Sequence[Column], rows: list[list[Cell]]) -> list[int]:
    return [
        max(len(text) for text in (column.title, *(row[at].text for row in rows))) for at, column in enumerate(columns)
    ]


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


def short(text: str, width: int) -> str:
    """`text`, cut to `width` characters."""
    return text if len(text) <= width else text[: width - 1] + "…"


def moment(when: datetime | None) -> str:
    """A time that can be pasted into `--from`, to the millisecond."""
    if when is None:
        return "–"
    return f"{when:%Y-%m-%dT%H:%M:%S}.{when.microsecond // 1000:03d}Z"


def ago(seconds: float | None) -> str:
    """A length of time in its two largest units."""
    if seconds is None:
        return "–"
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
    if count is None:
        return "–"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
