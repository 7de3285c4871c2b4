"""`python -m aether_runtime`: one runtime process; `aether runtime` is the same."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import uvloop

from aether_api import logs
from aether_api.errors import AetherError, SettingsInvalid
from aether_api.logs import configure_logging
from aether_runtime.process import run_process
from aether_runtime.settings import read_settings

logger = logging.getLogger(__name__)

EXIT_INTERRUPTED: Final = 130
"""128 and the number of SIGINT, as shells have it."""


def run(arguments: Sequence[str]) -> int:
    """Run a runtime until it is told to stop; returns the exit code."""
    parser = argparse.ArgumentParser(prog="aether runtime", description="Hold actors: replay them from JetStream, take commands, append events.")
    parser.add_argument("--folder", type=Path, help="folder of manifests with ActorModels and Actors, instead of Kubernetes and of what AETHER_SOURCE says")
    parser.add_argument("--nats", dest="nats_url", metavar="URL", help="NATS server, such as nats://127.0.0.1:4222")
    parser.add_argument("--namespace", help="namespace to serve (default: default)")
    parser.add_argument("--http-port", type=int, help="port of the probes; 0 turns them off")
    options = parser.parse_args(arguments)
    try:
        settings = read_settings(**vars(options))
        configure_logging(level=settings.log_level)
        uvloop.run(run_process(settings))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED  # before there was anything to stop in order
    except AetherError as exc:
        configure_logging()
        logger.error("the runtime cannot start", extra={logs.REASON: str(exc)})
        return 1
    except ExceptionGroup as group:
        refusals = group.subgroup(SettingsInvalid)
        if refusals is None:
            raise
        logger.error("the runtime cannot go on", extra={logs.REASON: str(refusals.exceptions[0])})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
