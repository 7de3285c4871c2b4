"""`python -m aether_operator`: the operator as a process; also what `aether operator` runs."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from typing import Final, cast

import uvloop

from aether_api.errors import SettingsInvalid
from aether_api.logs import configure_logging
from aether_operator.handlers.lifecycle import run_operator
from aether_operator.settings import OperatorSettings, read_settings

logger = logging.getLogger(__name__)

EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2
"""As argparse: the caller has to change something first."""


def run(argv: Sequence[str]) -> int:
    """Run the operator until it is told to stop, and return the exit code."""
    argparse.ArgumentParser(prog="aether operator", description="Run the Kubernetes operator. All settings are environment variables that begin with AETHER_.").parse_args(argv)
    try:
        settings = read_settings()
    except SettingsInvalid as exc:
        return _refuse(exc)
    configure_logging(level=settings.log_level)
    _calm_libraries(settings.log_level)
    return _run(settings)


def _run(settings: OperatorSettings) -> int:
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(run_operator(settings))
    except SettingsInvalid as exc:
        return _refuse(exc)
    except ExceptionGroup as group:
        refusals = group.subgroup(SettingsInvalid)
        if refusals is not None:
            return _refuse(_first(refusals))
        logger.critical("a part of the operator died, and the operator with it", exc_info=True)
        return EXIT_FAILED
    return 0


def _refuse(error: Exception) -> int:
    sys.stderr.write(f"aether operator: {error}\n")
    return EXIT_SETTINGS


def _first(error: Exception) -> Exception:
    """Return the first error in the depth of a group."""
    return _first(cast("ExceptionGroup[Exception]", error).exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _calm_libraries(level: str) -> None:
    """Keep kopf's own progress, and each probe, out of our log unless somebody debugs; why kopf ended, our own line tells."""
    if level != "DEBUG":
        for name in ("kopf", "aiohttp.access"):
            logging.getLogger(name).setLevel(logging.WARNING)
        logging.getLogger("kopf._core.reactor").setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
