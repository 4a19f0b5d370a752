"""The fence of one incarnation in one partition: a number on the server, which all that changes something must bear.

Theory of operation. A request whose reply is lost may still be executed, late. Raising the number first, over a new
connection, shuts it out: what bears the old number changes nothing any more. Others who take us for dead put a word in
the number's place, so that it cannot be raised; what a stranger has put there that no number of ours follows is taken
for that word.
"""

from collections.abc import Iterable

import trio

from canvasbus.errors import TransportError, Unavailable
from canvasbus.transport.link import Link, SharedLink
from canvasbus.transport.owner_scripts import RAISE
from canvasbus.transport.resp import Argument, Reply, ReplyError, code, commands, translate
from canvasbus.transport.scripts import FENCE_SECONDS, Script


class Fence:
    """A fencing token; see the theory above."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.number = 0
        self.in_doubt = False
        """Something that bears `number` may be executed later, or the server's number is higher, by our own doing: it must
        be raised before anything is said again."""
        self.raised = trio.Event()
        """Set, and replaced, when the number was raised."""

    async def run(
        self, link: Link | SharedLink, script: Script, keys: Iterable[bytes], args: Iterable[Argument]
    ) -> Reply:
        """Run a script under the fence, which is the first of its keys, and the number the first of its arguments."""
        try:
            reply = await link.run(script.call([self.key, *keys], [self.number, *args]))
        except BaseException as error:
            told = isinstance(error, TransportError) and not (isinstance(error, Unavailable) and error.ambiguous)
            self.in_doubt |= not told
            raise
        self.in_doubt |= reply == b"STALE"
        return reply

    async def raise_number(self, link: Link) -> bool:
        """Shut out what was sent until now. False: others have taken us for dead."""
        self.in_doubt = True
        raised, times = 0, 1
        while raised <= self.number:
            steps = [("INCR", self.key)] * times
            replies = await link.request(commands(*steps, ("EXPIRE", self.key, FENCE_SECONDS)))
            raised = replies[times - 1]
            if isinstance(raised, ReplyError) and code(raised) == "OOM":  # what needs no memory must not wait for this
                raised = await link.run(RAISE.call([self.key], [times, FENCE_SECONDS]))
            if isinstance(raised, ReplyError):
                if "not an integer" in str(raised) or "overflow" in str(raised):
                    return False
                raise translate(raised, "settle")
            if raised < 1:  # nobody gets from there to our number in time
                return False
            # A server that lost its last seconds begins at 0 again: what was sent lately must not come true once more.
            times = min(self.number - raised + 1, 1000)
        self.number = raised
        self.in_doubt = False
        self.raised.set()
        self.raised = trio.Event()
        return True

    def __repr__(self) -> str:
        return f"<Fence {self.key.decode()} at {self.number}>"
