"""The server of the probes, under clients that do not mean well."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from aether_kube import probe_server
from aether_kube.probe_server import CONNECTIONS_MAX, open_probe_server
from tests.cluster.processes import find_free_ports

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    async def live(request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def broken(request: web.Request) -> web.Response:
        raise ZeroDivisionError

    [port] = find_free_ports(1)
    application = web.Application()
    application.router.add_get("/livez", live)
    application.router.add_get("/broken", broken)
    close = await open_probe_server(application, port)
    try:
        yield port
    finally:
        await close()


async def send(port: int, data: bytes) -> Stream:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    return reader, writer


async def ask(port: int, data: bytes) -> bytes:
    """Return the first line of the answer."""
    reader, writer = await send(port, data)
    try:
        async with asyncio.timeout(10):
            return (await reader.readline()).strip()
    finally:
        writer.close()


async def end_of(stream: Stream) -> bytes:
    """Wait until the server closes a connection."""
    reader, writer = stream
    try:
        async with asyncio.timeout(10):
            return await reader.read()
    finally:
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"GET /liv", b"GET /livez HTTP/1.1\r\nHost: a\r\n"])
async def test_who_does_not_finish_a_request_is_closed(monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    monkeypatch.setattr(probe_server, "SILENCE_MAX_S", 0.01)
    async with serving() as port:
        assert await end_of(await send(port, sent)) == b""


async def test_a_probe_is_answered_among_very_many_half_open_connections() -> None:
    async with serving() as port:
        half_open = [await send(port, b"GET /liv") for _ in range(400)]
        assert await ask(port, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n") == b"HTTP/1.1 200 OK"
        assert [await end_of(stream) for stream in half_open[: 400 - CONNECTIONS_MAX - CONNECTIONS_MAX]] == [b""] * (400 - 2 * CONNECTIONS_MAX)
        for _, writer in half_open:
            writer.close()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /livez HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"a" * 20_000 + b" / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n" + b"a" * 20_000 + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nnothing\r\n",
    ],
    ids=["header", "url", "method", "tls", "second request", "chunks"],
)
async def test_what_is_no_http_is_not_logged(caplog: pytest.LogCaptureFixture, request_bytes: bytes) -> None:
    caplog.set_level("DEBUG")
    async with serving() as port:
        await ask(port, request_bytes)
        assert await ask(port, b"GET /livez HTTP/1.1\r\nHost: a\r\n\r\n") == b"HTTP/1.1 200 OK"
    assert [record.getMessage() for record in caplog.records if record.exc_info or record.levelname != "DEBUG"] == []


async def test_an_answer_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with serving() as port:
        assert await ask(port, b"GET /broken HTTP/1.1\r\nHost: a\r\n\r\n") == b"HTTP/1.1 500 Internal Server Error"
    assert [record.levelname for record in caplog.records] == ["ERROR"]
