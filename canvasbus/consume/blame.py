"""Which line of a user's own code an error is blamed on, where one line is all that is told of it."""

import contextlib
import traceback


def blame(error: BaseException, ours: str) -> str:
    """Kind, text and place of the first error inside. The place is the line of the user's own function, not where inside of a
    library; `ours` is the file that called it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    said = " ".join(str(error).split())
    frames = traceback.extract_tb(error.__traceback__)
    users = [f for f in frames if f.filename not in (ours, contextlib.__file__)] or frames
    place = f" ({users[0].filename}, line {users[0].lineno})" if users else ""
    return f"{type(error).__name__}{': ' if said else ''}{said}{place}"
