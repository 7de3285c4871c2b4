"""Answers the kubelet's probes, in the loop that does the work: one that stands still gives no answer."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from aether_api.errors import SettingsInvalid
from aether_kube.probe_server import open_probe_server


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
    close = await _listen(application, port)
    try:
        yield
    finally:
        await close()


async def _listen(application: web.Application, port: int) -> Callable[[], Awaitable[None]]:
    try:
        return await open_probe_server(application, port)
    except OSError as exc:
        raise SettingsInvalid(f"AETHER_HEALTH_PORT: the probe cannot listen on port {port} ({exc.strerror or exc}); choose another one, or 0 for no probe") from exc
