"""Work side by side within a block: what runs in the background, and many calls of which some are under way at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager


@asynccontextmanager
async def background(work: Coroutine[None, None, None], name: str) -> AsyncGenerator[None, None]:
    """Run something beside a `with` block and cancel it at the end; if it fails, so does the block."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(work, name=name)
        try:
            yield
        finally:
            task.cancel()


async def run_at_once(calls: Iterable[Callable[[], Awaitable[object]]], width: int) -> None:
    """Make calls in order with at most `width` of them under way, and wait for all."""
    waiting = iter(calls)

    async def work() -> None:
        for call in waiting:
            await call()

    async with asyncio.TaskGroup() as workers:
        for number in range(width):
            workers.create_task(work(), name=f"worker {number}")
