"""Hands what a socket brings to the parser at once, in place of the stream reader that nats-py dials with.

A stream reader costs a copy into its buffer, a future, a turn of the reading task and a copy out of the buffer for each 32 KB. None
of that is needed by a parser that keeps what is left of a message by itself: bytes go from the transport to the handlers in one call.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from nats.errors import ProtocolError, UnexpectedEOF

from aether_nats.parser import FastParser

NEWS_MAX: Final = 16
"""INFO lines that wait for nats-py: a server sends one when its cluster changes, and the newest tells all."""


class Receiver(asyncio.Protocol):
    """Takes the bytes of a transport from its stream's protocol, which still learns of everything else: its writer waits for that.

    Attributes:
        news: INFO lines, and in the end why there is nothing more to read.
    """

    def __init__(self, parser: FastParser) -> None:
        """Make a receiver that takes nothing before `take_over`."""
        self.news: asyncio.Queue[dict[str, Any] | Exception] = asyncio.Queue(NEWS_MAX)
        self._parser = parser
        self._stream = asyncio.Protocol()
        self._has_ended = False

    def take_over(self, client: Any) -> None:
        """Read from now on, beginning with what the stream reader holds already.

        Args:
            client: nats-py's `TcpTransport`, after the handshake.
        """
        self._parser.reset()
        transport, reader = client._io_writer.transport, client._io_reader  # the reader's public methods would wait where there is nothing
        self._stream = transport.get_protocol()
        transport.set_protocol(self)
        if reader._buffer:
            self.data_received(bytes(reader._buffer))
        if reader._eof or transport.is_closing():
            self.end(UnexpectedEOF())
        transport.resume_reading()  # a full stream reader had paused it

    def tell(self, info: dict[str, Any]) -> None:
        """Pass an INFO line on."""
        if self.news.full():
            self.news.get_nowait()
        self.news.put_nowait(info)

    def end(self, error: Exception | None = None) -> None:
        """Take nothing more, because of `error` or because nobody wants it."""
        if self._has_ended:
            return
        self._has_ended = True
        if error is not None:
            if self.news.full():
                self.news.get_nowait()
            self.news.put_nowait(error)

    def data_received(self, data: bytes) -> None:
        """Take bytes; what a handler raises is for the loop to report, and ends the connection."""
        if self._has_ended:
            return
        try:
            self._parser.feed(data)
        except ProtocolError as exc:
            self.end(exc)

    def eof_received(self) -> bool | None:
        """The server sends no more."""
        self.end(UnexpectedEOF())
        return self._stream.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        """The socket is gone."""
        self.end(exc or UnexpectedEOF())
        self._stream.connection_lost(exc)

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._stream.pause_writing()

    def resume_writing(self) -> None:
        """The socket's buffer has room again."""
        self._stream.resume_writing()
