"""The simulated server on a real socket, so that the tests that nats-server passes can be run against it, too."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

from tests.simulation.server.api import ApiEngine
from tests.simulation.server.broker import Broker


class RealClock:
    """The time as it is."""

    def now_s(self) -> float:
        """Return unix time."""
        return time.time()

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something later."""
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, work)
        else:
            work()


class SocketServer:
    """The simulated server where clients can connect to it; as much of `aether_nats.embedded.EmbeddedServer` as tests use."""

    def __init__(self) -> None:
        self.engine = ApiEngine(Broker(RealClock()))
        self._server: asyncio.Server | None = None
        self._port = 0
        self._writers: set[asyncio.StreamWriter] = set()

    @classmethod
    @asynccontextmanager
    async def start(cls) -> AsyncGenerator[SocketServer, None]:
        """Serve for the length of a `with` block."""
        server = cls()
        await server.run()
        try:
            yield server
        finally:
            await server.stop()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port it listens on."""
        return self._port

    async def run(self) -> None:
        """Listen, on the same port as before."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """Drop all clients; streams are kept."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()
        self.engine.broker.close_all()
        await asyncio.sleep(0)

    async def kill(self) -> None:
        """Do the same: every write is kept as soon as it is acknowledged."""
        await self.stop()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        session = self.engine.broker.open_session("client", writer.write)
        try:
            with suppress(OSError):
                while data := await reader.read(65536):
                    session.receive(data)
        finally:
            session.close()
            self._writers.discard(writer)
            writer.transport.abort()
