"""Asking before something is done that cannot be undone."""

import argparse
import sys

from canvasbus.cli.context import Context
from canvasbus.errors import CanvasbusError, ConfigError


def confirm(context: Context, args: argparse.Namespace, question: str) -> None:
    """Return when the person agrees or has agreed with --yes. Raises ConfigError when there is nobody to ask, and
    CanvasbusError when the answer is no."""
    if args.yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise ConfigError(f"{context.command}: {question} Nobody can be asked here: add --yes, or look with --dry-run")
    print(f"{question} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise CanvasbusError("nothing was changed")
    context.link.close()  # the server may have closed this connection while the person thought
