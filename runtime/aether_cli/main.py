"""`aether`: finds the sub-command and hands its arguments over.

Nothing is imported before it is needed: bare Python starts in 20 ms, kopf alone takes two seconds.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Final, cast

from aether_cli.output import OutputLost, flush, give_up_output, open_standard_streams, tell, write_line

Entry = Callable[[Sequence[str]], int]

EXIT_TERMINATED: Final = 143
"""128 and the number of SIGTERM."""

EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as a shell says it: Ctrl-C is no failure that needs a traceback."""

EXIT_UNREAD: Final = 141
"""128 and the number of SIGPIPE, with which a shell sees other programs end whose output nobody reads any more (`aether history account/alice | head -1`)."""

COMMANDS: Final = {
    "demo": ("aether_cli.demo", "run the bank example on this machine, kill the runtime, and show that nothing is lost"),
    "send": ("aether_cli.send", "send a command to an actor and print its reply"),
    "status": ("aether_cli.status", "ask the pods what they do for an actor, or how they are; wakes nobody"),
    "inbox": ("aether_cli.inbox", "print the durable commands that wait, and the reminders of an actor"),
    "dead": ("aether_cli.dead", "list, show, retry or drop durable commands that were given up"),
    "history": ("aether_cli.history", "print the events of an actor as the log holds them"),
    "operator": ("aether_operator.__main__", "run the Kubernetes operator"),
    "runtime": ("aether_runtime.__main__", "run a runtime, from Kubernetes or a folder of manifests"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one sub-command and return its exit code: 0 fine, 1 failed, 2 wrong usage, 130 interrupted, 141 when nobody reads its output any more."""
    if os.getpid() == 1:
        # The kernel drops a signal that the first process of a container has no handler for: a pod that was deleted while it
        # started, or while it waited for NATS, stayed for its whole grace. Sub-commands that serve put their own in the place of this one.
        signal.signal(signal.SIGTERM, _end)
    open_standard_streams()
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        try:
            return _run(given)
        finally:
            flush()
    except OutputLost as exc:
        give_up_output()
        if exc.is_closed:
            return EXIT_UNREAD
        tell(f"aether: {exc}")
        return 1
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(given: Sequence[str]) -> int:
    if not given or given[0] in ("-h", "--help", "help"):
        write_line(build_help())
        return 0 if given else 2
    if given[0] in ("-V", "--version", "version"):
        write_line(f"aether {metadata.version('aether-actors')}")
        return 0
    if given[0] not in COMMANDS:
        tell(f"aether: there is no command {given[0]!r}; `aether --help` lists them")
        return 2
    entry = cast("Entry", importlib.import_module(COMMANDS[given[0]][0]).run)
    return entry(given[1:])


def _end(number: int, frame: object) -> None:
    sys.exit(EXIT_TERMINATED)


def build_help() -> str:
    """Return the list of sub-commands."""
    lines = [f"  {name:10} {help_text}" for name, (_, help_text) in COMMANDS.items()]
    codes = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 rejected (send), 130 interrupted, 141 nobody reads the output any more."
    return "usage: aether COMMAND [ARGUMENTS]\n\n" + "\n".join(lines) + f"\n\n{codes}\n\n`aether COMMAND --help` says more; `aether --version` prints the version."


if __name__ == "__main__":
    sys.exit(main())
