"""The life of a runtime inside another program, which says `start` and `stop` and does not wait between them.

A program with a task to spare runs `Runtime.run` in a TaskGroup of its own and so hears of a failure at once. For all others
`Life` owns that task: `stop` ends it and waits for its end, within a bound, and raises what it failed with.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

from aether_api.errors import PermanentError

logger = logging.getLogger(__name__)

LEAVE_SLACK_S: Final = 5.0
"""Seconds beyond the bound that a runtime itself keeps when it leaves, until it is cut short from outside."""


class Run(Protocol):
    """A life that calls `started` when its work can begin."""

    def __call__(self, *, started: Callable[[], None]) -> Coroutine[None, None, None]:
        """Live until told to stop."""
        ...


class Life:
    """Owns the one task of a runtime that was started."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None

    async def start(self, run: Run) -> None:
        """Begin `run` and return once it has started; if that is cancelled, nothing is left behind.

        Raises:
            PermanentError: it was begun before.
            BaseException: what ended `run` before it had started.
        """
        if self._task is not None:
            raise PermanentError("this runtime was started before; make another one")
        loop = asyncio.get_running_loop()
        started: asyncio.Future[None] = loop.create_future()
        task = self._task = loop.create_task(run(started=lambda: started.set_result(None)), name="runtime")
        try:
            await asyncio.wait({task, started}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await _end(task)
            raise
        if task.done():
            task.result()
        task.add_done_callback(_report_failure)

    async def stop(self, request_stop: Callable[[], None], *, timeout_s: float) -> None:
        """Let the life end in order, cut it short after `timeout_s`, and raise what it failed with; harmless to repeat."""
        task = self._task
        if task is None:
            return
        request_stop()
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            logger.warning("the runtime did not leave in time and is cut short")
            await _end(task)
        if not task.cancelled():
            task.result()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _report_failure(task: asyncio.Task[None]) -> None:
    """Say at once that a life failed, since its program may ask only much later."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("the runtime has failed", exc_info=task.exception())
