"""The fence of one incarnation in one partition: a number on the server, which all that changes something must bear.

Theory of operation. A request whose reply is lost may still be executed, late. Raising the number first, over a new
connection, shuts it out: what bears the old number changes nothing any more. Others who take us for dead put a word in
the number's place, so that it cannot be raised.
"""

from canvasbus.transport.link import Link
from canvasbus.transport.resp import ReplyError, commands, translate
from canvasbus.transport.scripts import FENCE_SECONDS


class Fence:
    """A fencing token; see the theory above."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.number = 0
        self.behind = False
        """The number on the server may be higher than `number`, by our own doing: what bears that is refused as STALE."""
        self.commit_on_the_way = False
        """A commit was sent, and no answer of the server says that it will not be executed later."""

    async def raise_number(self, link: Link) -> bool:
        """Shut out what was sent until now. False: others have taken us for dead."""
        self.behind = True
        raised, times = 0, 1
        while raised <= self.number:
            steps = [("INCR", self.key)] * times
            replies = await link.request(commands(*steps, ("EXPIRE", self.key, FENCE_SECONDS)))
            raised = replies[times - 1]
            if isinstance(raised, ReplyError):
                if "not an integer" in str(raised):
                    return False
                raise translate(raised, "settle")
            # A server that lost its last seconds begins at 0 again: what was sent lately must not come true once more.
            times = min(self.number - raised + 1, 1000)
        self.number = raised
        self.behind = False
        return True

    async def shut_out_commit(self, link: Link) -> None:
        """After the end of the settler: no commit that may still be on its way is executed any more, so that what it
        settles can be handed back."""
        if self.commit_on_the_way or self.behind:
            await self.raise_number(link)  # if others have, handing back finds out
            self.commit_on_the_way = False

    def __repr__(self) -> str:
        return f"<Fence {self.key.decode()} at {self.number}>"
