"""The life of a runtime inside another program, which says `start` and `stop` and does not wait between them.

A program with a task to spare runs `Runtime.run` in a TaskGroup of its own and so hears of a failure at once. For all others
`Life` owns that task: `stop` ends it and waits for its end, within a bound, and raises what it failed with. A life in a task of the
program's own it asks to end, and waits as long; only its owner can cut it short, and hears of its failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Final, Protocol

from aether_api.errors import PermanentError, SettingsInvalid, describe_value

logger = logging.getLogger(__name__)

LEAVE_SLACK_S: Final = 5.0
"""Seconds beyond the bound that a runtime itself keeps when it leaves, until it is cut short from outside."""


class Run(Protocol):
    """A life that calls `started` when its work can begin."""

    def __call__(self, *, started: Callable[[], None]) -> Coroutine[None, None, None]:
        """Live until told to stop."""
        ...


class Life:
    """Owns the one task of a runtime that was started, and knows whether it lives."""

    def __init__(self) -> None:
        self._task: asyncio.Task[None] | None = None
        self._is_over = asyncio.Event()
        self._is_over.set()

    @property
    def is_over(self) -> bool:
        """Whether nothing runs, in whichever task: it has not begun, or has ended."""
        return self._is_over.is_set()

    @asynccontextmanager
    async def lasting(self) -> AsyncGenerator[None]:
        """Note that the life lasts for as long as the block."""
        self._is_over.clear()
        try:
            yield
        finally:
            self._is_over.set()

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
        """Let the life end in order, cut it short after `timeout_s`, and raise what it failed with; harmless to repeat.

        Raises:
            SettingsInvalid: `timeout_s` is no time; nothing happened.
        """
        _check_timeout(timeout_s)
        task = self._task
        if task is None:
            if not self.is_over:
                request_stop()
                with suppress(TimeoutError):
                    async with asyncio.timeout(timeout_s):
                        await self._is_over.wait()
            return
        request_stop()
        await asyncio.wait({task}, timeout=timeout_s)
        if not task.done():
            logger.warning("the runtime did not leave in time and is cut short")
            await _end(task)
        if not task.cancelled():
            task.result()


def _check_timeout(timeout_s: object) -> None:
    if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool) or not timeout_s >= 0:
        raise SettingsInvalid(f"timeout_s must be seconds, 0 or more, not {describe_value(timeout_s)}")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})


def _report_failure(task: asyncio.Task[None]) -> None:
    """Say at once that a life failed, since its program may ask only much later."""
    if not task.cancelled() and task.exception() is not None:
        logger.error("the runtime has failed", exc_info=task.exception())
