"""What a group declares of itself, for everybody, in `Keys.groups`: what it reads, and whether it is of one process only.

Retention keeps what a declared group has not handled, from its declaration on; tools list it, and ask who would get a type.
"""

from collections.abc import Iterable

import msgspec
from msgspec import Struct

from canvasbus.contract.globs import listens


class Group(Struct, frozen=True):
    """A group as its workers have declared it."""

    name: str
    types: frozenset[str] = frozenset()
    globs: frozenset[str] = frozenset()
    instance: bool = False
    """It is a process of a worker with group=PER_INSTANCE."""

    def listens_to(self, event_type: str) -> bool:
        """True when it reads the type or will as soon as it finds it."""
        return listens(event_type, self.types, self.globs)


class _Declaration(Struct):
    types: list[str] = []
    globs: list[str] = []
    instance: bool = False


_decode = msgspec.json.Decoder(_Declaration).decode


def declaration(types: Iterable[str], globs: Iterable[str], *, instance: bool) -> bytes:
    """As it lies on the server."""
    return msgspec.json.encode(_Declaration(sorted(set(types)), sorted(set(globs)), instance))


def read_group(name: str, about: bytes) -> Group:
    """A declaration; one that is none, which a stranger wrote, says that the group reads nothing."""
    try:
        said = _decode(about)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return Group(name)
    return Group(name, frozenset(said.types), frozenset(said.globs), said.instance)
