"""The plain layer: nats-py's public methods only, for versions of nats-py that the fast layer does not know.

nats-py's methods are coroutines while a link's are not, so operations pass through a bounded queue to one task, in order.
That task and nats-py's own outlive any caller's scope, hence no TaskGroup can hold it; `close` ends and awaits it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from nats import errors as nats_errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription as NatsSubscription

from aether_api.errors import Backpressure
from aether_api.headers import FIRST_LINE, decode_headers
from aether_nats.link import LinkEvents, StrictClient, Subscriber, connect_client
from aether_nats.settings import NatsSettings


@dataclass(frozen=True, slots=True)
class _Publish:
    subject: str
    reply: str
    headers: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class _Subscribe:
    sid: int
    subject: str
    queue: str


@dataclass(frozen=True, slots=True)
class _Unsubscribe:
    sid: int


_Operation = _Publish | _Subscribe | _Unsubscribe


class PlainLink:
    """A link over nats-py's public interface."""

    def __init__(self, settings: NatsSettings, events: LinkEvents, loop: asyncio.AbstractEventLoop) -> None:
        self._settings = settings
        self._events = events
        self._loop = loop
        self._client = StrictClient(demands_tls=settings.demands_tls)
        self._operations: deque[_Operation] = deque()
        self._queued_bytes = 0
        self._wakeup = asyncio.Event()
        self._subscriptions: dict[int, NatsSubscription] = {}
        self._subscribers: dict[int, Subscriber] = {}
        self._ended: set[int] = set()
        self._writer: asyncio.Task[None] | None = None

    @property
    def client(self) -> StrictClient:
        """The nats-py client that carries the link."""
        return self._client

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscription; nats-py restores it after reconnects."""
        self._subscribers[subscriber.sid] = subscriber
        self._queue(_Subscribe(subscriber.sid, subscriber.subject, subscriber.queue))

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Tell the server to send no more; the handler stays."""
        if subscriber.sid in self._subscribers and subscriber.sid not in self._ended:
            self._ended.add(subscriber.sid)
            self._queue(_Unsubscribe(subscriber.sid))

    def forget(self, subscriber: Subscriber) -> None:
        """Drop the handler of a subscription."""
        self._subscribers.pop(subscriber.sid, None)
        self._ended.discard(subscriber.sid)

    def active(self) -> list[Subscriber]:
        """Return the subscriptions that were not ended."""
        return [subscriber for subscriber in self._subscribers.values() if subscriber.sid not in self._ended]

    def publish(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """Queue a message, or raise `Backpressure`."""
        self._check_room(len(payload))
        self._queue_publish(subject, reply, headers, payload)

    def publish_each(self, subject: str, reply: str, payloads: Sequence[bytes]) -> None:
        """Queue short messages of one subject, or raise `Backpressure`."""
        self._check_room(sum(map(len, payloads)))
        for payload in payloads:
            self._queue_publish(subject, reply, b"", payload)

    def respond(self, reply: bytes, payload: bytes) -> None:
        """Queue an answer, or raise `Backpressure`."""
        self.publish(reply.decode(), "", b"", payload)

    def write_queued(self) -> None:
        """Do nothing: nats-py decides when it writes."""

    def restore(self) -> None:
        """Do nothing: nats-py has restored its subscriptions, and those made meanwhile wait in the queue."""

    def drop_unsent(self) -> None:
        """Throw away the messages in the queue; nats-py may still send those it has taken over."""
        self._operations = deque(operation for operation in self._operations if not isinstance(operation, _Publish))
        self._queued_bytes = 0

    async def open(self) -> None:
        """Connect; retries until it is cancelled."""
        await connect_client(self._client, self._settings, self._events)
        self._writer = self._loop.create_task(self._run_writer(), name="nats-plain-writer")

    async def close(self) -> None:
        """Write what is queued and close the client."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.wait([self._writer])
        while self._operations and self._client.is_connected:
            await self._perform(self._operations.popleft())
        await self._client.close()

    def abort(self) -> None:
        """Do nothing: nats-py offers no way to drop its socket."""

    def _check_room(self, wanted: int) -> None:
        pending = self._queued_bytes + self._client.pending_data_size
        if pending + wanted > self._settings.pending_bytes_max:
            raise Backpressure(f"{pending} bytes wait for the NATS socket, {wanted} more do not fit; slow down")

    def _queue_publish(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        self._queued_bytes += len(payload)
        self._queue(_Publish(subject, reply, headers, payload))

    def _queue(self, operation: _Operation) -> None:
        self._operations.append(operation)
        self._wakeup.set()

    async def _run_writer(self) -> None:
        while True:
            await self._wakeup.wait()
            self._wakeup.clear()
            while self._operations:
                await self._perform(self._operations.popleft())

    async def _perform(self, operation: _Operation) -> None:
        try:
            match operation:
                case _Publish(subject, reply, headers, payload):
                    self._queued_bytes = max(0, self._queued_bytes - len(payload))
                    await self._client.publish(subject, payload, reply=reply, headers=decode_headers(FIRST_LINE + b"\r\n" + headers) if headers else None)
                case _Subscribe(sid, subject, queue):
                    on_message = partial(self._on_message, sid)
                    self._subscriptions[sid] = await self._client.subscribe(subject, queue=queue, cb=on_message)  # pyright: ignore[reportUnknownMemberType]  # its Future has no parameter
                case _Unsubscribe(sid):
                    await self._end_subscription(sid)
        except (nats_errors.Error, OSError) as exc:
            self._events.error(exc)

    async def _end_subscription(self, sid: int) -> None:
        """Drain while the handler is still there, else end it at once (draining costs a round trip)."""
        subscription = self._subscriptions.pop(sid, None)
        if subscription is not None and sid in self._subscribers:
            await subscription.drain()
        elif subscription is not None:
            await subscription.unsubscribe()

    async def _on_message(self, sid: int, message: Msg) -> None:
        handler = self._subscribers.get(sid)
        if handler is not None:
            handler(message.subject.encode(), message.reply.encode(), _encode_block(message.headers), message.data)


def _encode_block(headers: dict[str, str] | None) -> bytes:
    """Return the header block as the server sent it, from nats-py's dictionary."""
    if not headers:
        return b""
    values = dict(headers)
    status, description = values.pop("Status", ""), values.pop("Description", "")
    first = " ".join(word for word in (FIRST_LINE.decode(), status, description) if word)
    return "".join([f"{first}\r\n", *(f"{name}: {value}\r\n" for name, value in values.items()), "\r\n"]).encode()
