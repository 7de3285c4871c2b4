"""A NATS client reduced to what the bare loops need: the most that asyncio gives, with no semantics at all.

One parse loop of searches and slices, a callback for each message, writes corked until the end of the loop's iteration,
replies found by a token below one inbox. No reconnect, no time-outs, no TLS: what a product adds is what the benches measure.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import secrets
from collections.abc import Callable
from typing import Final, cast

from bench.errors import BenchFailed

_LETTER_M: Final = ord("M")
_LETTER_H: Final = ord("H")
_COUNTED: Final = b'"seq":'
_CONNECT: Final = b'CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"0","protocol":1,"headers":true,"no_responders":true}\r\n'

Handler = Callable[[bytes, bytes, bytes, bytes], None]
"""Takes subject, reply subject, raw headers and payload."""

Taker = Callable[[bytes, bytes], None]
"""Takes raw headers and payload of a reply."""


class BareClient(asyncio.Protocol):
    """One connection; made by `connect`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.replies: dict[bytes, Taker] = {}
        self._transport: asyncio.Transport | None = None
        self._rest = b""
        self._handlers: dict[bytes, Handler] = {}
        self._sids = itertools.count(1)
        self._tokens = itertools.count(1)
        self._corked: list[bytes] = []
        self._greeted: asyncio.Future[None] = loop.create_future()
        self._pongs: list[asyncio.Future[None]] = []
        self._inbox = b"_INBOX." + secrets.token_hex(8).encode()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the socket."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whoever still waits for the server."""
        for waiting in (self._greeted, *self._pongs):
            if not waiting.done():
                waiting.set_exception(BenchFailed(f"the connection to the server was lost: {exc}"))

    def data_received(self, data: bytes) -> None:
        """Hand every whole message to its handler and keep the rest."""
        if self._rest:
            data = self._rest + data
        position, end, find, handlers = 0, len(data), data.find, self._handlers
        while position < end:
            newline = find(b"\r\n", position)
            if newline < 0:
                break
            letter = data[position]
            if letter == _LETTER_H:
                words = data[position + 5 : newline].split(b" ")
                start = newline + 2
                stop = start + int(words[-1])
                if stop + 2 > end:
                    break
                body = start + int(words[-2])
                handlers[words[1]](words[0], words[2] if len(words) == 5 else b"", data[start:body], data[body:stop])
                position = stop + 2
            elif letter == _LETTER_M:
                words = data[position + 4 : newline].split(b" ")
                start = newline + 2
                stop = start + int(words[-1])
                if stop + 2 > end:
                    break
                handlers[words[1]](words[0], words[2] if len(words) == 4 else b"", b"", data[start:stop])
                position = stop + 2
            else:
                self._control(data[position:newline])
                position = newline + 2
        self._rest = data[position:] if position < end else b""

    def publish(self, subject: bytes, payload: bytes, reply: bytes = b"") -> None:
        """Send a message without headers."""
        self._cork(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload))

    def publish_with(self, headers: bytes, subject: bytes, payload: bytes, reply: bytes) -> None:
        """Send a message with header lines, each ended by CRLF."""
        block = b"NATS/1.0\r\n%b\r\n" % headers
        self._cork(b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, len(block), len(block) + len(payload), block, payload))

    def subscribe(self, subject: bytes, handler: Handler) -> None:
        """Call `handler` with every message of a subject."""
        sid = b"%d" % next(self._sids)
        self._handlers[sid] = handler
        self._cork(b"SUB %b %b\r\n" % (subject, sid))

    def expect(self, taker: Taker) -> tuple[bytes, bytes]:
        """Return a reply subject whose messages go to `taker`, and the key under which `replies` holds it until somebody deletes it."""
        token = b"%x" % next(self._tokens)
        self.replies[token] = taker
        return b"%b.%b" % (self._inbox, token), token

    async def request(self, subject: bytes, payload: bytes = b"") -> tuple[bytes, bytes]:
        """Send a request and return headers and payload of the one reply."""
        future: asyncio.Future[tuple[bytes, bytes]] = self.loop.create_future()

        def take(headers: bytes, payload: bytes) -> None:
            del self.replies[token]
            future.set_result((headers, payload))

        reply, token = self.expect(take)
        self.publish(subject, payload, reply)
        return await future

    async def ping(self) -> None:
        """Wait until the server has handled everything sent before."""
        pong: asyncio.Future[None] = self.loop.create_future()
        self._pongs.append(pong)
        self._cork(b"PING\r\n")
        await pong

    def close(self) -> None:
        """Send what is corked and close the socket."""
        self._flush()
        if self._transport is not None:
            self._transport.close()

    async def start(self) -> None:
        """Shake hands with the server."""
        await self._greeted
        self._cork(_CONNECT)
        prefix, replies = len(self._inbox) + 1, self.replies

        def on_reply(subject: bytes, _reply: bytes, headers: bytes, payload: bytes) -> None:
            taker = replies.get(subject[prefix:])
            if taker is not None:
                taker(headers, payload)

        self.subscribe(self._inbox + b".*", on_reply)
        await self.ping()

    def _control(self, line: bytes) -> None:
        if line == b"PING":
            self._cork(b"PONG\r\n")
        elif line == b"PONG":
            self._pongs.pop(0).set_result(None)
        elif line.startswith(b"INFO"):
            if not self._greeted.done():
                self._greeted.set_result(None)
        else:
            raise BenchFailed(f"the server says {line.decode()}")

    def _cork(self, data: bytes) -> None:
        if not self._corked:
            self.loop.call_soon(self._flush)
        self._corked.append(data)

    def _flush(self) -> None:
        if self._corked and self._transport is not None:
            self._transport.write(b"".join(self._corked))
            self._corked.clear()


async def connect(port: int) -> BareClient:
    """Connect to a server on this machine."""
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(lambda: BareClient(loop), "127.0.0.1", port)
    await client.start()
    return client


def parse_ack(payload: bytes) -> int:
    """Return the sequence of a publish acknowledgement.

    Raises:
        BenchFailed: the server refused; nobody else writes, so the loop is wrong.
    """
    at = payload.find(_COUNTED)
    if at < 0 or payload.startswith(b'{"error"'):
        raise BenchFailed(f"an append was refused: {json.loads(payload or b'null')}")
    start = stop = at + len(_COUNTED)
    while 48 <= payload[stop] <= 57:
        stop += 1
    return int(payload[start:stop])
