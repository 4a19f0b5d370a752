"""Tables fit the terminal: names stay whole, the last column is cut or moves below, nothing is padded into a wrap."""

import io
import re

import pytest

from canvasbus.cli.output import Cell, Column, Output, ago, cell_width, safe, short, size

COLUMNS = (Column("NAME"), Column("COUNT", right=True), Column("WHY", flexible=True))
ROWS = [
    ("drift.detected", Cell("12", "yellow"), "because of a very long story " * 3),
    ("顔生成", "3", ""),
    ("a", "1", "–"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def printed(monkeypatch: pytest.MonkeyPatch, width: int | None, *, colour: bool = False) -> list[str]:
    """The table's lines on a terminal of this width; None: piped."""
    monkeypatch.setenv("COLUMNS", str(width or 80))
    monkeypatch.setenv("TERM", "xterm" if colour else "dumb")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = io.StringIO() if width is None else Terminal()
    Output(stdout=stream).table(COLUMNS, ROWS)
    return stream.getvalue().splitlines()


def test_piped_tables_are_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is cut where no terminal is."""
    lines = printed(monkeypatch, None)
    assert lines[0] == "NAME            COUNT  WHY"
    assert lines[1] == "drift.detected     12  " + ("because of a very long story " * 3).strip()
    assert lines[2] == "顔生成" + " " * 14 + "3"


@pytest.mark.parametrize("width", [54, 60, 80, 100, 200])
def test_the_last_column_gets_the_room_that_is_left(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """It is cut with an ellipsis exactly at the edge, or whole when it fits; no line is longer than the terminal."""
    lines = printed(monkeypatch, width)
    assert len(lines) == 4 and all(cell_width(line) <= width for line in lines)
    assert lines[1].endswith("…") is (width < 23 + 86)
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.parametrize("width", [24, 40, 52])
def test_without_room_it_moves_below(monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    """Each row keeps its names whole and has its last cell, if there is one, on a line of its own."""
    lines = printed(monkeypatch, width)
    assert [line.split()[0] for line in lines] == ["NAME", "drift.detected", "why:", "顔生成", "a"]
    assert lines[2].startswith("    why: because") and cell_width(lines[2]) <= width
    assert "WHY" not in lines[0]


def test_colours_change_no_column(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the escape sequences a painted table is the plain one."""
    painted = printed(monkeypatch, 80, colour=True)
    assert any("\x1b[33m12\x1b[0m" in line for line in painted)
    assert [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in painted] == printed(monkeypatch, 80)


def test_foreign_text_is_harmless() -> None:
    """Escape sequences, line ends, reversed writing and lone surrogates become visible escapes."""
    assert safe("a\x1b[2J\n\u202e\ud800é顔") == "a\\x1b[2J\\n\\u202e\\ud800é顔"
    stream = io.StringIO()
    Output(stdout=stream).table((Column("A"),), [("x\ny",)])
    assert stream.getvalue() == "A\nx\\ny\n"


def test_cutting_counts_columns_of_the_terminal() -> None:
    """Wide characters take two, combining marks none; what fits is not touched."""
    assert [short("abcdef", 6), short("abcdef", 5), short("顔生成", 6), short("顔生成", 5), short("", 3)] == [
        *("abcdef", "abcd…", "顔生成", "顔生…", "")
    ]
    assert cell_width("e\u0301") == 1


def test_text_is_cut_between_words() -> None:
    """The last column of a table, where a word that is not too long can be left out whole."""
    assert short("rate 3, silenced 12", 17, words=True) == "rate 3, silenced…"
    assert short("rate 3, silenced 12", 12, words=True) == "rate 3, sil…"
    assert short("rate limited, silenced", 19, words=True) == "rate limited…"
    assert short("fits here", 9, words=True) == "fits here"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((None, "–"), (0.4, "<1s"), (1, "1s"), (59.9, "59s"), (60, "1m"), (61, "1m 1s"), (3600, "1h")),
        *((3661, "1h 1m"), (86400, "1d"), (90_000, "1d 1h"), (1e7, "115d 17h")),
    ],
)
def test_lengths_of_time(seconds: float | None, text: str) -> None:
    """In their two largest units; unknown is a dash."""
    assert ago(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(None, "–"), (0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (2**20, "1.0 MiB"), (2**50, "1024.0 TiB")],
)
def test_sizes(count: int | None, text: str) -> None:
    """In binary units; unknown is a dash."""
    assert size(count) == text
