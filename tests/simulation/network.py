"""TCP as processes see it: bytes in order, some time later, until a link breaks.

A link breaks in three ways. It may be reset: what is under way is lost, and both ends hear of it. It may be reset right after what was
sent has arrived, so that only the answers are lost. Or it may go silent: nothing arrives any more and nobody is told, as when a
machine vanishes; the server gives such a client up after its pings, the client the server after its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, cast

from tests.simulation.loop import PROCESS, Process, State, VirtualLoop

if TYPE_CHECKING:
    from tests.simulation.faults import Faults
    from tests.simulation.server.broker import Broker, Session

GIVEN_UP_S: Final = (10.0, 15.0)
"""Seconds after which the server gives up a silent client: two pings of five seconds without an answer."""

CONNECT_HANGS_S: Final = 30.0
"""Seconds of a dial whose answer never comes; whoever dials gives up before."""


class Network:
    """All links to the one server.

    Attributes:
        is_up: whether the server listens.
        links: all that there ever were.
        partitioned: processes that reach nobody.
    """

    def __init__(self, loop: VirtualLoop, broker: Broker, faults: Faults) -> None:
        self.is_up = True
        self.partitioned: set[str] = set()
        self.links: list[Link] = []
        self._loop = loop
        self._broker = broker
        self._faults = faults

    async def connect(self, protocol_factory: Callable[[], asyncio.Protocol], _address: str) -> tuple[asyncio.Transport, asyncio.Protocol]:
        """Open a link for the process that asks.

        Raises:
            ConnectionRefusedError: nobody listens.
        """
        process = PROCESS.get()
        assert process is not None, "only processes connect"
        await asyncio.sleep(self._faults.draw_latency_s())
        if process.name in self.partitioned:
            await asyncio.sleep(CONNECT_HANGS_S)
        if not self.is_up:
            raise ConnectionRefusedError("nobody listens")
        link = Link(self._loop, process, protocol_factory(), self._faults)
        self.links.append(link)
        link.open(self._broker)
        return link.transport, link.protocol

    def links_of(self, process: Process) -> list[Link]:
        """Return the links of a process that are open, silent ones too."""
        return [link for link in self.links if link.is_open and link.process is process]

    def stop(self) -> None:
        """The server ends: all links are reset."""
        self.is_up = False
        for link in self.links:
            link.reset()

    def forget(self) -> None:
        """Drop everything once the run is over."""
        for link in self.links:
            link.transport.is_lost = True
        self.links.clear()

    def bury(self, process: Process, *, silently: bool) -> None:
        """A process was killed: its system closes its links, unless the whole machine is gone."""
        for link in self.links_of(process):
            if silently:
                link.go_silent()
            else:
                link.reset()


class Link:
    """One TCP connection from a process to the server."""

    def __init__(self, loop: VirtualLoop, process: Process, protocol: asyncio.Protocol, faults: Faults) -> None:
        self.process = process
        self.protocol = protocol
        self.transport = SimulatedTransport(self)
        self.is_open = True
        self.is_silent = False
        self._loop = loop
        self._faults = faults
        self._session: Session | None = None
        self._context = copy_context()
        self._outside: Context = outside()
        self._sent: dict[int, bytes] = {}
        self._count = 0
        self._up_s = self._down_s = 0.0

    def open(self, broker: Broker) -> None:
        """Begin: the server greets."""
        self.protocol.connection_made(self.transport)
        self._session = broker.open_session(self.process.name, self._from_server)

    # To the server.

    def send(self, data: bytes) -> None:
        """Put bytes on their way to the server."""
        if not self.is_open or self.is_silent:
            return
        self._count += 1
        self._sent[self._count] = data
        self._up_s = max(self._up_s, self._loop.time() + self._faults.draw_latency_s(self.process.name))
        self._loop.call_at(self._up_s, self._arrive, self._count, context=self._outside)
        if self._faults.cuts_after_sending(data):
            self.reset(deliver=True)

    def _arrive(self, number: int) -> None:
        data = self._sent.pop(number, None)
        if data is not None and self._session is not None:
            self._session.receive(data)

    # From the server.

    def _from_server(self, data: bytes) -> None:
        if not self.is_open or self.is_silent:
            return
        for piece in self._faults.cut(data):
            self._down_s = max(self._down_s, self._loop.time() + self._faults.draw_latency_s(self.process.name))
            self._loop.call_at(self._down_s, self._reach, piece, context=self._context)

    def _reach(self, data: bytes) -> None:
        if self.is_open and not self.is_silent and not self.transport.is_closing():
            self.protocol.data_received(data)

    # The end.

    def reset(self, *, deliver: bool = False) -> None:
        """Break the link at once; with `deliver` the server still gets all that was sent."""
        if not self.is_open:
            return
        sent, self._sent = self._sent, {}
        if deliver and self._session is not None and not self.is_silent:
            outside().run(self._session.receive, self._faults.keep_part(b"".join(sent.values())))  # the server works on, whatever becomes of the process
        self._end_session()
        was_silent, self.is_open = self.is_silent, False
        if not was_silent or self.process.state is not State.DEAD:
            self._loop.call_later(self._faults.draw_latency_s(), self._tell_lost, ConnectionResetError("the link was reset"), context=self._context)

    def go_silent(self) -> None:
        """Let nothing pass any more, without a word to either end."""
        if self.is_open and not self.is_silent:
            self.is_silent = True
            self._sent.clear()
            self._loop.call_later(self._faults.draw(*GIVEN_UP_S), self._end_session, context=self._outside)

    def close(self) -> None:
        """The process closes its end; what it sent before still arrives."""
        if self.is_open:
            self.is_open = False
            if not self.is_silent:
                self._loop.call_at(max(self._up_s, self._loop.time()), self._end_session, context=self._outside)
            self._loop.call_soon(self._tell_lost, None, context=self._context)

    def abort(self) -> None:
        """The process drops its end; what was under way is lost."""
        if self.is_open:
            self._sent.clear()
            self.close()

    def _end_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            session.close()

    def _tell_lost(self, error: Exception | None) -> None:
        if not self.transport.is_lost:
            self.transport.is_lost = True
            self.protocol.connection_lost(error)


class SimulatedTransport(asyncio.Transport):
    """The process's end of a link."""

    def __init__(self, link: Link) -> None:
        super().__init__()
        self.is_lost = False
        self._link = link
        self._is_closing = False

    def write(self, data: Any) -> None:
        """Send."""
        if not self._is_closing and data:
            self._link.send(bytes(data))

    def is_closing(self) -> bool:
        """Tell whether it was closed or lost."""
        return self._is_closing or self.is_lost

    def close(self) -> None:
        """Close in order."""
        if not self._is_closing:
            self._is_closing = True
            self._link.close()

    def abort(self) -> None:
        """Close at once."""
        if not self._is_closing:
            self._is_closing = True
            self._link.abort()

    def get_protocol(self) -> asyncio.BaseProtocol:
        """Return who takes what arrives."""
        return self._link.protocol

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Let another one take what arrives."""
        self._link.protocol = cast("asyncio.Protocol", protocol)

    def resume_reading(self) -> None:
        """Go on: nothing ever pauses it."""

    def get_write_buffer_size(self) -> int:
        """Return 0: the link takes everything at once, and is slow itself."""
        return 0

    def pause_reading(self) -> None:
        """Refuse, as asyncio allows: reads are bounded by what is sent."""
        raise NotImplementedError

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """Return nothing: there is no socket."""
        return default


def outside() -> Context:
    """Return a context of no process: that of the world."""
    context = copy_context()
    context.run(PROCESS.set, None)
    return context
