"""A TCP link to a server that a test can cut, stall and mend."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress


class CutLink:
    """A proxy on a port of its own. `to` makes one.

    While it is cut nobody gets through, and both sides know. While it is stalled connections stay open and bring nothing, as behind a
    firewall that forgot them.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._opened = asyncio.Event()
        self._opened.set()
        self._dropping = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    @classmethod
    @asynccontextmanager
    async def to(cls, target_port: int) -> AsyncGenerator[CutLink, None]:
        """Run a proxy for the length of a `with` block."""
        link = cls(target_port)
        link._server = await asyncio.start_server(link._serve, "127.0.0.1", 0)
        try:
            yield link
        finally:
            link._server.close()
            await link.cut()

    @property
    def address(self) -> str:
        """Where clients connect: host and port."""
        assert self._server is not None
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    @property
    def url(self) -> str:
        """Where clients of NATS connect."""
        return f"nats://{self.address}"

    @property
    def http_url(self) -> str:
        """Where clients of an API server connect."""
        return f"http://{self.address}"

    async def cut(self) -> None:
        """Drop all connections and refuse new ones."""
        self._opened.clear()
        for writer in list(self._writers):
            writer.transport.abort()

    def stall(self) -> None:
        """Keep all connections and take new ones, but pass nothing on."""
        self._flowing.clear()

    def mend(self) -> None:
        """Let connections through again, with what waited in them."""
        self._opened.set()
        self._flowing.set()

    def drop_next_answer(self) -> None:
        """Pass on what comes next from a client, and drop that client's connection before the answer."""
        self._dropping = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._opened.is_set():
            writer.transport.abort()
            return
        try:
            to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        if not self._opened.is_set():  # it was cut meanwhile
            writer.transport.abort()
            to_writer.transport.abort()
            return
        self._writers |= {writer, to_writer}
        try:
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump_to_server(reader, to_writer, writer), name="to the server")
                pumps.create_task(self._pump(to_reader, writer), name="to the client")
        finally:
            self._writers -= {writer, to_writer}

    async def _pump_to_server(self, reader: asyncio.StreamReader, to_writer: asyncio.StreamWriter, client: asyncio.StreamWriter) -> None:
        """Pass bytes on as `_pump` does, until an answer is to be dropped; the server reads all that was sent before."""
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                to_writer.write(data)
                await to_writer.drain()
                if self._dropping:
                    self._dropping = False
                    client.transport.abort()
                    to_writer.close()
                    return
        to_writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass bytes on until either side ends, then end both."""
        with suppress(OSError):
            while data := await reader.read(65536):
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()
        writer.transport.abort()
