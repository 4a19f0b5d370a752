"""From flags to episodes."""

from random import Random

import pytest

from canvasbus_workers.drift.episodes import Episodes


@pytest.mark.parametrize(
    ("flags", "changes"),
    [
        ("..........", "          "),
        (".x.x.x.x..", "          "),
        (".xx.......", "  o  r    "),
        (".xxxxx...x", "  o     r "),
        ("xx..x..x...", " o        r"),
        ("xx...xx...", " o  r o  r"),
    ],
)
def test_two_flags_open_and_three_clean_close(flags: str, changes: str) -> None:
    """One flag is nothing, two in a row open, three clean in a row resolve; anything in between starts the count anew."""
    episodes = Episodes()
    letters = {"opened": "o", "resolved": "r", None: " "}
    assert "".join(letters[episodes.feed(n, flag == "x")] for n, flag in enumerate(flags)) == changes


def test_the_first_flag_is_remembered() -> None:
    """`first` is the window that began the row which opened the episode; episodes are counted."""
    episodes = Episodes()
    for number, flag in enumerate(".x..xx...xx"):
        episodes.feed(number, flag == "x")
    assert (episodes.first, episodes.opened, episodes.is_open) == (9, 2, True)


def test_it_equals_a_look_at_the_whole_past() -> None:
    """Random flags against a naive machine that looks back at the last verdicts."""
    for seed in range(200):
        random = Random(seed)
        enter, leave = random.randint(1, 3), random.randint(1, 4)
        episodes = Episodes(enter=enter, leave=leave)
        past: list[bool] = []
        is_open, since = False, 0
        for number in range(60):
            past.append(random.random() < 0.5)
            need, wanted = (leave, False) if is_open else (enter, True)
            turned = len(past) - since >= need and all(flag is wanted for flag in past[-need:])
            if turned:
                is_open, since = not is_open, len(past)
            expected = None if not turned else "opened" if is_open else "resolved"
            assert episodes.feed(number, past[-1]) == expected, f"seed {seed}, window {number}"
