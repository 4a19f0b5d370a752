"""What a run of a handler changes besides the events that it returns: timers and state, committed with its
acknowledgement by the settle script or not at all."""

from collections.abc import Callable

from canvasbus.transport.resp import Argument
from canvasbus.wire.keys import Keys

Index = Callable[[bytes, str], int]
"""The place of a key among those of the script; the letter says of what type it is (see SETTLE)."""


class Changes:
    """Steps of the settle script for one outcome."""

    __slots__ = ("_after", "_before", "_once", "on_settled", "size")

    def __init__(self) -> None:
        self._once: list[tuple[bytes, bytes]] = []
        self._before: list[tuple[bytes, bytes]] = []
        self._after: list[Callable[[Index], tuple[Argument, ...]]] = []
        self.size = 0
        """Bytes that go to the server, about."""
        self.on_settled: list[Callable[[bool], None]] = []
        """Called with True once the changes are on the server, with False when they are not and never will be."""

    def __len__(self) -> int:
        return len(self._once) + len(self._before) + len(self._after)

    def once(self, key: bytes, entry: bytes, milliseconds: int) -> None:
        """Change nothing if the mark is there and names another entry than this; else set it."""
        self._once.append((key, entry))
        self._after.append(lambda index: ("set", index(key, "s"), entry, milliseconds))

    def unmark(self, key: bytes, entry: bytes) -> None:
        """Remove the mark if it names this entry."""
        self._after.append(lambda index: ("unmark", index(key, "s"), entry))

    def compare(self, key: bytes, token: bytes) -> None:
        """Change nothing unless the state still has this token; empty: unless it still does not exist."""
        self._before.append((key, token))

    def set(self, key: bytes, value: bytes, milliseconds: int) -> None:
        """Write a state (a token and bytes); an empty value deletes it, 0 milliseconds keep it for ever."""
        self.size += len(value)
        self._after.append(lambda index: ("set", index(key, "s"), value, milliseconds))

    def put(self, key: bytes, part: str, value: bytes, milliseconds: int) -> None:
        """Write a part; an empty value removes it."""
        self.size += len(value)
        self._after.append(lambda index: ("part", index(key, "h"), part, value, milliseconds))

    def clear(self, key: bytes) -> None:
        """Remove all parts."""
        self._after.append(lambda index: ("set", index(key, "h"), b"", 0))

    def start_timer(self, keys: Keys, timer: str, due: str, body: bytes) -> None:
        """Set a timer, or set it anew; `due` is from wire.later."""
        after, at = (due[1:], "0") if due.startswith("+") else ("", due)
        self.size += len(body)
        self._after.append(
            lambda index: ("later", index(keys.timers, "z"), index(keys.timer_bodies, "h"), timer, after, at, body)
        )

    def cancel_timer(self, keys: Keys, timer: str) -> None:
        """Remove a timer."""
        self._after.append(lambda index: ("cancel", index(keys.timers, "z"), index(keys.timer_bodies, "h"), timer))

    def add(self, more: "Changes") -> None:
        """Make these changes too, after the others."""
        self._once += more._once
        self._before += more._before
        self._after += more._after
        self.size += more.size

    def before(self, index: Index) -> list[Argument]:
        """The steps that come before the derived events."""
        args: list[Argument] = []
        for key, entry in self._once:
            args += ("once", index(key, "s"), entry)
        for key, token in self._before:
            args += ("if", index(key, "s"), token)
        return args

    def after(self, index: Index) -> list[Argument]:
        """The steps that come after them."""
        args: list[Argument] = []
        for step in self._after:
            args += step(index)
        return args

    def settled(self, applied: bool) -> None:
        """The fate of the changes is known."""
        for tell in self.on_settled:
            tell(applied)

    def __repr__(self) -> str:
        return f"<Changes: {len(self)} steps>"
