"""Standard output of the command line, and what becomes of a command when it takes no more.

Sub-commands print with `write_line`. Where the reader has gone or the disk is full, that raises `OutputLost`, which `aether_cli.main` handles once for
all of them; an `OSError` of anything else stays what it is.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress

_MODES = (os.O_RDONLY, os.O_RDONLY, os.O_WRONLY)
"""How the null device stands in for a closed standard input, output and error: writing to the second fails, as to a closed one."""


class OutputLost(Exception):
    """Standard output cannot be written.

    Attributes:
        is_closed: its reader has gone, as `head` does when it has enough; nobody needs to be told.
    """

    def __init__(self, cause: OSError) -> None:
        super().__init__(f"standard output cannot be written: {cause.strerror}")
        self.is_closed = isinstance(cause, BrokenPipeError)


def write_line(text: str) -> None:
    """Print a line, perhaps later; or raise `OutputLost`."""
    try:
        print(text)
    except OSError as exc:
        raise OutputLost(exc) from exc


def flush() -> None:
    """Print what is held back, or raise `OutputLost`."""
    try:
        sys.stdout.flush()
    except OSError as exc:
        raise OutputLost(exc) from exc


def tell(text: str) -> None:
    """Print a line to standard error, where one may still be heard."""
    with suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def give_up_output() -> None:
    """Let what is still held back go nowhere: the interpreter would try again at its end, and complain."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def open_standard_streams() -> None:
    """Open those of the three that are closed (`>&-`): the next socket would take their place, which ends libuv, and would get what is printed."""
    for number, mode in enumerate(_MODES):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, mode), True)  # the lowest free one, which is this
            if number:
                stream = open(number, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115  # it lasts as long as the process
                setattr(sys, ("stdout", "stderr")[number - 1], stream)
