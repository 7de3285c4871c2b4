"""Answers the kubelet's probes, in the loop that does the work: one that stands still gives no answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import web

from aether_api.errors import SettingsInvalid

SHUTDOWN_TIMEOUT_S: Final = 1.0
"""Seconds for an answer under way at the end; aiohttp would wait for a minute."""


@asynccontextmanager
async def serving_health(port: int, find_sickness: Callable[[], list[str]]) -> AsyncGenerator[None, None]:
    """Answer at `/healthz` for the length of a `with` block; port 0 turns it off.

    Raises:
        SettingsInvalid: the port cannot be had.
    """

    async def answer(_: web.Request) -> web.Response:
        sickness = find_sickness()
        return web.json_response({"sickness": sickness}, status=503 if sickness else 200)

    if not port:
        yield
        return
    application = web.Application()
    application.router.add_get("/healthz", answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S)
    await runner.setup()
    try:
        await _listen(runner, port)
        yield
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, port: int) -> None:
    try:
        await web.TCPSite(runner, port=port).start()
    except OSError as exc:
        raise SettingsInvalid(f"AETHER_HEALTH_PORT: the probe cannot listen on port {port} ({exc.strerror or exc}); choose another one, or 0 for no probe") from exc
