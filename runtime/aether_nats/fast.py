"""The fast layer: nats-py keeps the connection, this module reads and writes it.

What is replaced: the parser object (`Client._ps`) and the way of bytes to it (`Client._read_loop`), so that a message costs one callback instead of a queue
and a task; the write path, corked to one write to the socket in an iteration of the loop; the subscriptions, a bare table. What stays
nats-py's: dialling, TLS, authentication, pings, the decision to reconnect. Measured: 2.5 to 8 times nats-py's rate.

It touches names that nats-py does not promise, so `find_refusal` looks at the version and at each of these names first; if it
refuses, the plain layer serves. It also heals three faults of nats-py 2.16 on the way: a pong for a flush that was given up kills
the read loop; some errors that the server reports close the client for ever; a dead peer with unsent bytes delays the
reconnect until TCP gives up, which takes minutes.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Sequence
from typing import Any, Final, cast

import nats.aio.client
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.transport import TcpTransport
from nats.protocol.parser import PERMISSIONS_ERR, PONG, Parser

from aether_api.errors import Backpressure
from aether_nats.link import TASK_NAMES, LinkEvents, StrictClient, Subscriber, connect_client
from aether_nats.parser import FastParser
from aether_nats.receiver import Receiver
from aether_nats.settings import NatsSettings

logger = logging.getLogger(__name__)

VERSION_PREFIX: Final = "2.16."
"""The versions of nats-py whose inside this module was written and tested against."""

HEADER_FRAME_BYTES: Final = len(b"NATS/1.0\r\n\r\n")
"""Bytes around header lines, which the server counts as part of the message."""

_CLIENT_NAMES: Final = ("_read_loop", "_process_info", "_process_err", "_process_op_err", "_process_connect_init", "_attempt_reconnect")


def find_refusal(settings: NatsSettings) -> str:
    """Return why the fast layer cannot be used here, or an empty string."""
    if not settings.fast:
        return "the settings ask for the plain layer"
    if settings.uses_websocket:
        return "WebSocket frames have no synchronous write"
    version = nats.aio.client.__version__
    if not version.startswith(VERSION_PREFIX):
        return f"nats-py is {version}, not {VERSION_PREFIX}x"
    missing = [name for name in _CLIENT_NAMES if not inspect.iscoroutinefunction(getattr(Client, name, None))]
    missing += [name for name in ("_ps", "_transport", "_pongs", "_pings_outstanding", *TASK_NAMES) if name not in vars(Client())]
    missing += [name for name in ("_io_reader", "_io_writer") if name not in vars(TcpTransport())]
    missing += [] if hasattr(Parser, "reset") else ["reset"]
    return f"nats-py {version} lacks {', '.join(missing)}" if missing else ""


class _FastClient(StrictClient):
    """nats-py's client with our parser and a stricter idea of losing a link."""

    def __init__(self, handlers: dict[bytes, Subscriber], events: LinkEvents, *, demands_tls: bool) -> None:
        super().__init__(demands_tls=demands_tls)
        self._ps = self._parser = FastParser(self, handlers)
        self._receiver: Receiver | None = None
        self._events = events
        self._is_ending = False

    def write(self, data: bytes) -> None:
        """Hand bytes to the socket; they go nowhere when it was lost a moment ago, as bytes on a wire do."""
        writer = self._find_writer()
        if writer is None or not writer.transport.is_closing():
            self._transport.write(data)  # type: ignore[union-attr]  # a link that is up has a transport

    def count_buffered(self) -> int:
        """Return how many bytes the socket's buffer holds."""
        writer = self._find_writer()
        return writer.transport.get_write_buffer_size() if writer is not None else 0

    def abort(self) -> None:
        """Drop the socket at once, with whatever it holds."""
        writer = self._find_writer()
        if writer is not None:
            writer.transport.abort()

    def on_ping(self) -> None:
        """Answer a ping."""
        self.write(PONG)

    def on_pong(self) -> None:
        """Take a pong; unlike nats-py, also one that nobody awaits any more."""
        self._pings_outstanding = 0
        pongs = cast("list[asyncio.Future[bool]]", self._pongs)  # pyright: ignore[reportUnknownMemberType]  # nats-py's Future has no parameter
        if pongs:
            pong = pongs.pop(0)
            if not pong.done():
                pong.set_result(True)

    def on_info(self, info: dict[str, Any]) -> None:
        """Take new facts about the cluster."""
        if self._receiver is not None:
            self._receiver.tell(info)

    def on_server_error(self, text: str) -> None:
        """Report a missing permission; for any other error reconnect, where nats-py would close for ever."""
        error = nats_errors.Error(f"nats: {text}")
        if PERMISSIONS_ERR in text.lower():
            self._events.error(error)
        elif self._receiver is not None:
            self._receiver.end(error)

    async def close(self) -> None:
        """End for good."""
        self._is_ending = True
        await super().close()

    async def _read_loop(self) -> None:
        """Let bytes go to the parser until there are no more, and take what must be waited for."""
        receiver = self._receiver = Receiver(self._parser)
        try:
            receiver.take_over(self._transport)
            while not isinstance(news := await receiver.news.get(), Exception):
                await self._process_info(news)
        except Exception as exc:  # the root of reading: a link that nobody reads is no link
            logger.exception("what came from NATS could not be handled, the link is made anew")
            news = exc
        finally:
            receiver.end()
        self._events.error(news)
        await self._process_op_err(news)

    async def _process_op_err(self, e: Exception) -> None:
        if self._receiver is not None:
            self._receiver.end()  # what is on its way belongs to a message of which the parser now forgets the beginning
        await super()._process_op_err(e)

    async def _attempt_reconnect(self) -> None:
        self._events.down()
        self.abort()
        await super()._attempt_reconnect()
        if self._is_ending and not self.is_closed:
            await super().close()  # the cancellation was lost: wait_for of Python 3.11 drops one that meets the success of a dial

    def _find_writer(self) -> asyncio.StreamWriter | None:
        return self._transport._io_writer if isinstance(self._transport, TcpTransport) else None  # pyright: ignore[reportPrivateUsage]  # the only way to the socket's buffer


class FastLink:
    """A link whose writes are corked and whose subscriptions are one dictionary (an idle actor has one, so its size counts)."""

    def __init__(self, settings: NatsSettings, events: LinkEvents, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._events = events
        self._loop = loop
        self._handlers: dict[bytes, Subscriber] = {}
        self._ended: set[int] = set()
        self._client = _FastClient(self._handlers, events, demands_tls=settings.demands_tls)
        self._corked: list[bytes] = []
        self._corked_bytes = 0
        self._buffered_bytes = 0
        self._is_up = False

    @property
    def client(self) -> StrictClient:
        """The nats-py client that carries the link."""
        return self._client

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscription; it survives reconnects until `unsubscribe`."""
        self._handlers[b"%d" % subscriber.sid] = subscriber
        if self._is_up:
            self._cork(_build_line(subscriber))

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Tell the server to send no more; the handler stays."""
        sid = subscriber.sid
        if sid in self._ended or b"%d" % sid not in self._handlers:
            return
        self._ended.add(sid)
        if self._is_up:
            self._cork(b"UNSUB %d\r\n" % sid)

    def forget(self, subscriber: Subscriber) -> None:
        """Drop the handler of a subscription."""
        self._handlers.pop(b"%d" % subscriber.sid, None)
        self._ended.discard(subscriber.sid)

    def active(self) -> list[Subscriber]:
        """Return the subscriptions that were not ended."""
        return [subscriber for subscriber in self._handlers.values() if subscriber.sid not in self._ended]

    def publish(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """Queue a message for the next write, or raise `Backpressure`."""
        if self._corked_bytes + self._buffered_bytes + len(payload) > self._settings.pending_bytes_max:
            self._check_room(len(payload))
        route = f"{subject} {reply}".encode() if reply else subject.encode()
        if headers:
            size = len(headers) + HEADER_FRAME_BYTES
            self._cork(b"HPUB %b %d %d\r\nNATS/1.0\r\n%b\r\n%b\r\n" % (route, size, size + len(payload), headers, payload))
        else:
            self._cork(b"PUB %b %d\r\n%b\r\n" % (route, len(payload), payload))

    def publish_each(self, subject: str, reply: str, payloads: Sequence[bytes]) -> None:
        """Queue short messages of one subject for the next write, or raise `Backpressure`."""
        route = f"{subject} {reply}".encode()
        lines = b"".join([b"PUB %b %d\r\n%b\r\n" % (route, len(payload), payload) for payload in payloads])
        if self._corked_bytes + self._buffered_bytes + len(lines) > self._settings.pending_bytes_max:
            self._check_room(len(lines))
        self._cork(lines)

    def respond(self, reply: bytes, payload: bytes) -> None:
        """Queue an answer for the next write, or raise `Backpressure`."""
        size = len(payload)
        if self._corked_bytes + self._buffered_bytes + size > self._settings.pending_bytes_max:
            self._check_room(size)
        self._cork(b"PUB %b %d\r\n%b\r\n" % (reply, size, payload))

    def write_queued(self) -> None:
        """Hand what is queued to the socket."""
        if not self._corked:
            return
        self._client.write(b"".join(self._corked))
        self._corked.clear()
        self._corked_bytes = 0
        self._buffered_bytes = self._client.count_buffered()

    def restore(self) -> None:
        """Subscribe everything again on a fresh socket."""
        self.drop_unsent()
        self._is_up = True
        self._client.write(b"".join(map(_build_line, self.active())))

    def drop_unsent(self) -> None:
        """Throw away what waits for a socket that is gone."""
        self._is_up = False
        self._corked.clear()
        self._corked_bytes = self._buffered_bytes = 0

    async def open(self) -> None:
        """Connect; retries until it is cancelled."""
        await connect_client(self._client, self._settings, self._events)
        self._is_up = True

    async def close(self) -> None:
        """Write what is corked and close the socket."""
        self.write_queued()
        await self._client.close()

    def abort(self) -> None:
        """Drop the socket without waiting for what it still holds."""
        self._client.abort()

    def _cork(self, data: bytes) -> None:
        if not self._corked:
            self._loop.call_soon(self.write_queued)
        self._corked.append(data)
        self._corked_bytes += len(data)

    def _check_room(self, wanted: int) -> None:
        """Look at the socket again, since the last figure is as old as the last write."""
        self._buffered_bytes = self._client.count_buffered()
        pending = self._corked_bytes + self._buffered_bytes
        if pending + wanted > self._settings.pending_bytes_max:
            raise Backpressure(f"{pending} bytes wait for the NATS socket, {wanted} more do not fit; slow down")


def _build_line(subscriber: Subscriber) -> bytes:
    """Return the protocol line that subscribes."""
    return f"SUB {subscriber.subject} {subscriber.queue} {subscriber.sid}\r\n".encode() if subscriber.queue else f"SUB {subscriber.subject} {subscriber.sid}\r\n".encode()
