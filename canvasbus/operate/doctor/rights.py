"""Which roles the user of this connection can play. Nothing that is asked about is run."""

from collections.abc import Iterator, Sequence

from canvasbus.errors import Refused, TransportError
from canvasbus.operate.doctor.finding import Finding
from canvasbus.transport.blocking import BlockingLink
from canvasbus.transport.resp import ReplyError, code, commands
from canvasbus.transport.rights import RIGHTS, Right, denied, words
from canvasbus.transport.server import REPLY_TIMEOUT, BlockingConnection
from canvasbus.wire.keys import Keys

# Who may do this is meant to play the role: then what else is missing is a mistake.
_HALLMARK = {"producer": "watch", "worker": "xreadgroup", "operator": "xread"}
_CONNECTION = ("multi", "exec", "watch")
"""Commands that are run and not queued inside of a transaction."""


def lacking(link: BlockingLink, keys: Keys, *, group: str, event_type: str) -> list[Right] | None:
    """The rights of all roles that this user lacks; None: that cannot be found out. Raises TransportError.

    Asked by a script where the user may run one. Else by queueing the commands in a transaction that is never executed:
    whether they are permitted is looked at when they are queued. Then the server's ACL log shows those that are not.
    """
    asked = list(dict.fromkeys(right for rights in RIGHTS.values() for right in rights))
    try:
        return link.run(denied(asked, keys, group=group, event_type=event_type))
    except Refused:
        pass
    connection = link.server.connect_blocking()  # not the link, which would connect anew and run what shall be queued
    try:
        return _by_queueing(connection, asked, keys, group, event_type)
    except TransportError:
        return None
    finally:
        connection.close()


def _by_queueing(
    connection: BlockingConnection, asked: Sequence[Right], keys: Keys, group: str, event_type: str
) -> list[Right] | None:
    def ask(*forms: Sequence[bytes | str]) -> list[bool]:
        packet = commands(*(tuple(form) for form in forms))
        replies = connection.request(packet.data, packet.replies, REPLY_TIMEOUT)
        return [isinstance(reply, ReplyError) and code(reply) == "NOPERM" for reply in replies]

    watched = ask(["WATCH", keys.fence("doctor")])[0]
    if ask(["MULTI"])[0]:
        return None
    executed = ask(["EXEC"])[0]
    if not executed:
        ask(["MULTI"])
    refused = {"watch": watched, "multi": False, "exec": executed}
    queued = [right for right in asked if right.name not in _CONNECTION]
    forms = [words(right, keys, group=group, event_type=event_type) for right in queued]
    no = {right for right, is_refused in zip(queued, ask(*forms), strict=True) if is_refused}
    return [right for right in asked if right in no or refused.get(right.name)]


def judge_rights(lacks: list[Right] | None, user: str | None) -> Iterator[Finding]:
    """One finding for each role, or one for all where nothing is missing."""
    who = f"user {user!r}" if user is not None else "this user"
    if lacks is None:
        yield Finding("note", "rights", f"what {who} may do cannot be found out: it may run neither scripts nor MULTI")
        return
    gaps = {role: [right for right in rights if right in lacks] for role, rights in RIGHTS.items()}
    able = [role for role, gap in gaps.items() if not gap]
    if able:
        yield Finding("ok", "rights", f"{who} may do all that {_listed(able)} {'do' if len(able) > 1 else 'does'}")
    for role, gap in gaps.items():
        needed = {right.name: right.use for right in gap if not right.optional}
        wished = {right.name: right.use for right in gap if right.optional}
        if needed and _HALLMARK[role] in needed:
            yield Finding(
                "note",
                "rights",
                f"{who} cannot be {_a(role)}: it lacks {', '.join(needed)}",
                f"if it shall be one: `canvasbus doctor --acl {role}` prints what it needs",
            )
        elif needed:
            lost = "; ".join(f"{name}, to {use}" for name, use in needed.items())
            yield Finding(
                "error",
                "rights",
                f"{who} is only half {_a(role)}: it lacks {lost}",
                f"`canvasbus doctor --acl {role}` prints what it needs",
            )
        elif wished:
            lost = "; ".join(f"{name}, to {use}" for name, use in wished.items())
            yield Finding("note", "rights", f"{who} can be {_a(role)}, and lacks {lost}: the bus does without")


def _a(role: str) -> str:
    return f"an {role}" if role == "operator" else f"a {role}"


def _listed(roles: list[str]) -> str:
    return ", ".join(map(_a, roles[:-1])) + (" and " if roles[1:] else "") + _a(roles[-1])
