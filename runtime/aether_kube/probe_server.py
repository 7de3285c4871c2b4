"""The HTTP server that the kubelet and Prometheus ask: it answers them whatever else connects to its port.

A client that says nothing, or half of a request, is closed after some seconds, and of very many connections the oldest go: a probe
is answered within milliseconds, so what is old waits for nothing. What a client sends that is no HTTP is answered with 400 by
aiohttp and is not in the log, where it would stand with a traceback and all of its bytes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web
from aiohttp.http import HttpProcessingError

CONNECTIONS_MAX: Final = 64
"""Connections at once: the kubelet and a few Prometheus servers hold one or two each, and a pod has some hundred file descriptors at least."""

SILENCE_MAX_S: Final = 10.0
"""Seconds that a connection may take to send its first or next request in full: the kubelet gives up after five."""

SHUTDOWN_TIMEOUT_S: Final = 1.0
"""Seconds that an answer under way gets at the end of the process; aiohttp would wait for a minute."""

_logger = logging.getLogger(__name__)


async def open_probe_server(application: web.Application, port: int) -> Callable[[], Awaitable[None]]:
    """Listen on all addresses and return the function that ends it.

    Raises:
        OSError: the port cannot be had.
    """
    _logger.addFilter(_is_ours)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=SHUTDOWN_TIMEOUT_S, keepalive_timeout=SILENCE_MAX_S, logger=_logger)
    await runner.setup()
    server = runner.server
    assert server is not None, "it was set up"

    def accept() -> web.RequestHandler:
        known = server.connections  # the oldest first
        for connection in known[: max(0, len(known) + 1 - CONNECTIONS_MAX)]:
            connection.force_close()
        return server()

    try:
        listener = await asyncio.get_running_loop().create_server(accept, port=port, backlog=CONNECTIONS_MAX)
    except OSError:
        await runner.cleanup()
        raise

    async def close() -> None:
        listener.close()
        await runner.cleanup()

    return close


def _is_ours(record: logging.LogRecord) -> bool:
    """Return whether a record is about this process rather than about what a client sent."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, HttpProcessingError | web.RequestPayloadError)
