"""canvasbus doctor"""

import argparse

from canvasbus.cli.context import Context
from canvasbus.transport.rights import acl, user


def run(context: Context, args: argparse.Namespace) -> int:
    """1 when something is wrong."""
    return print_acl(context, args.acl)


def print_acl(context: Context, role: str) -> int:
    """The line for redis-cli, alone on stdout so that it can be piped there."""
    out, namespace = context.out, context.settings.namespace
    line, name = acl(role, namespace), user(role, namespace)
    if out.json:
        out.record({"role": role, "user": name, "command": line})
        return 0
    out.line(line)
    out.flush()
    out.note(f"a new {name} has no password and cannot log in yet: ACL SETUSER {name} '>PASSWORD'")
    return 0
