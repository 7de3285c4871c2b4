"""The HTTP side of a pod: `/livez` says that the event loop turns, `/readyz` that commands can be served, `/metrics` is for Prometheus."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from aiohttp import web

from aether_api.errors import SettingsInvalid
from aether_kube.probe_server import open_probe_server


async def serve_probes(port: int, is_ready: Callable[[], bool], render_metrics: Callable[[str], tuple[bytes, str]]) -> Callable[[], Awaitable[None]]:
    """Listen on all addresses and return the function that ends it.

    Args:
        render_metrics: turns an `Accept` header into the page of metrics and its content type.

    Raises:
        SettingsInvalid: the port cannot be had.
    """

    async def live(request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def ready(request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if is_ready() else web.Response(text="the link to NATS is down\n", status=503)

    async def metrics(request: web.Request) -> web.Response:
        page, content_type = render_metrics(request.headers.get("Accept", ""))
        return web.Response(body=page, headers={"Content-Type": content_type})

    application = web.Application()
    application.router.add_get("/livez", live)
    application.router.add_get("/readyz", ready)
    application.router.add_get("/metrics", metrics)
    try:
        return await open_probe_server(application, port)
    except OSError as exc:
        raise SettingsInvalid(f"AETHER_HTTP_PORT: the probes cannot listen on port {port} ({exc.strerror or exc}); choose another one, or 0 for no probes") from exc
