"""Which batches have been counted, so that one that is published again is not. No I/O.

The bus hands a batch out again only while nothing of it is committed, so this is about what is *published* again: by a model
server that was not sure and knows no `dedupe_key`, under the same id or with the same rows under another one, or by
`canvasbus replay`. That may be hours later, hence thousands of batches: eight bytes of each id, and of each batch's rows,
lie in one of 1024 shards, each a state of its own that forgets its oldest when it is full. A batch reads and writes two of
them, at most a kilobyte each (all of them in the window's own state, the last 128 batches cost five).

Of one version and segment the last 40,000 batches are known, for `keep_seconds`: the fullest shard has then lost none with
a probability above .999. That takes a megabyte where there are so many, and nothing where there are few. What is older
counts again. Two batches that share their bits would be taken for one: one in 10¹⁷.
"""

from hashlib import blake2b
from typing import NamedTuple

SHARDS = 1024
SLOTS = 128
"""Marks in a shard."""
WIDE = 8
"""Bytes of a mark."""


class Mark(NamedTuple):
    """What is left of a name."""

    shard: int
    bits: bytes


def mark(name: str) -> Mark:
    """Of an id or a digest of rows."""
    digest = blake2b(name.encode(), digest_size=WIDE + 2).digest()
    return Mark(int.from_bytes(digest[:2], "little") % SHARDS, digest[2:])


def is_in(shard: bytes, bits: bytes) -> bool:
    """It was added, and not too many others since."""
    return any(shard[at : at + WIDE] == bits for at in range(0, len(shard), WIDE))


def added(shard: bytes, bits: bytes) -> bytes:
    """The shard with one more, the newest last."""
    return (shard + bits)[-SLOTS * WIDE :]
