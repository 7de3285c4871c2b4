"""One connection to NATS with synchronous hot paths: publish, subscribe by callback, request by future.

Rules that callers rely on:

- While the link is down nothing is queued: `publish` and `request` raise `Disconnected` at once, so no message is sent late
  and memory stays bounded. Subscriptions are kept and restored before anything is published again.
- What the server drops for want of a permission fails with `PermissionDenied` at once, and does not wait for its deadline.
- When the link drops, every request under way fails with `Disconnected` at once. Whether it was carried out is unknown.
- A callback that raises is logged and costs only its message, never the connection.
- Callbacks run in the read loop, in the order of arrival, and must not block.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import Final

from nats import errors as nats_errors

from aether_api import logs
from aether_api.errors import AetherError, Disconnected, InvalidName, PayloadTooLarge, PermanentError, PermissionDenied, RequestTimeout, SettingsInvalid
from aether_nats.denials import is_refusal, read_denial
from aether_nats.fast import HEADER_FRAME_BYTES, FastLink, find_refusal
from aether_nats.link import Link, LinkEvents, Subscriber
from aether_nats.message import Message
from aether_nats.plain import PlainLink
from aether_nats.requests import DeniedRequests, Exchange, RequestTable, build_inbox_denial
from aether_nats.settings import NatsSettings

logger = logging.getLogger(__name__)

REQUEST_TIMEOUT_S: Final = 5.0
"""Seconds for a request whose caller names none: longer than a leader election of JetStream, shorter than patience."""

REFUSALS_MAX: Final = 3
"""Refusals after which opening is given up, a second apart at one server: one may be a server that is about to end."""

REFUSED_S: Final = 2.0
"""Seconds for which we must have been refused, too: several servers refuse within milliseconds, and those that are being told of their users know them by then."""

NEVER_ANSWERED: Final = (b"aether.", b"$")
"""Beginnings of subjects that nobody is answered on: the server lets everybody name any subject as the reply, and our answer would be taken for a commit, or for an order
to JetStream, of somebody who may not publish there himself."""

CLOSE_TIMEOUT_S: Final = 2.0
"""Seconds for the last bytes at closing; a pod's grace period is much longer."""

Callback = Callable[[Message], None]
Listener = Callable[[], None]


class Subscription:
    """A callback that is called with every message of a subject.

    Attributes:
        sid: number of the subscription in its connection.
        queue: the queue group, or empty.
        denied: set once the server has said that the user may not subscribe, which is known after a `flush`.
    """

    __slots__ = ("_callback", "_connection", "denied", "queue", "sid", "subject")

    def __init__(self, connection: NatsConnection, sid: int, subject: str, queue: str, callback: Callback) -> None:
        self._connection = connection
        self._callback = callback
        self.sid = sid
        self.subject = subject
        self.queue = queue
        self.denied: PermissionDenied | None = None

    def __call__(self, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Build the message and outlive a callback that raises; the link calls this."""
        try:
            self._callback(Message(subject, reply, raw_headers, payload))
        except Exception:  # the read loop supervises callbacks: one that raises must not end the connection
            logger.exception("a callback failed; its message is dropped", extra={logs.NAME: self.subject})

    def unsubscribe(self) -> None:
        """Stop at once; messages that are on their way are dropped, so their senders wait in vain."""
        self._connection.stop_subscription(self, keep_handler=False)

    async def drain(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Stop, but let the callback see every message that the server has already sent.

        Raises:
            Disconnected, RequestTimeout: the server did not confirm; the subscription is ended all the same.
        """
        await self._connection.drain_subscription(self, timeout_s)


class NatsConnection:
    """A connection that reconnects for ever; made by `open`."""

    def __init__(self, settings: NatsSettings, loop: asyncio.AbstractEventLoop) -> None:
        """Prepare a connection; callers use `open`."""
        self._settings = settings
        self._loop = loop
        self._requests = self._table = RequestTable(loop)
        self._link = _build_link(settings, LinkEvents(self._on_up, self._on_down, self._on_error), loop)
        self._sid = 0
        self._connected_since: float | None = None
        self._up = asyncio.Event()
        self._closed = False
        self._on_disconnect: list[Listener] = []
        self._on_reconnect: list[Listener] = []
        self._on_close: list[Listener] = []
        self._last_error: Exception | None = None
        self._opening: asyncio.Timeout | None = None
        self._refusals = 0
        self._refused_since = 0.0
        self._reply_warning = logs.Seldom()
        self._close_told = False

    @classmethod
    async def open(cls, settings: NatsSettings) -> NatsConnection:
        """Connect, or explain within `connect_timeout_s` why not.

        Raises:
            Disconnected: no server could be reached, or one refused us several times; the message names the URLs and the last cause.
            SettingsInvalid: credentials or certificates cannot be read, or a URL is malformed.
        """
        connection = cls(settings, asyncio.get_running_loop())
        try:
            async with asyncio.timeout(settings.connect_timeout_s) as connection._opening:
                await connection._link.open()
        except TimeoutError as exc:
            connection._opening = None  # a refusal in this moment ends nothing any more
            await connection.close()
            raise connection._explain_unopened() from exc
        except ImportError as exc:
            raise SettingsInvalid("credentials and nkeys for NATS need the package nkeys: pip install nkeys") from exc
        except (nats_errors.Error, ValueError, OSError) as exc:
            raise SettingsInvalid(f"cannot connect to NATS at {settings.describe_servers()}: {exc}") from exc
        finally:
            connection._opening = None
        connection._start()
        return connection

    @property
    def is_connected(self) -> bool:
        """Whether the link is up."""
        return self._connected_since is not None

    @property
    def is_closed(self) -> bool:
        """Whether the connection was closed, or nats-py gave it up."""
        return self._closed or self._link.client.is_closed

    @property
    def connected_since(self) -> float | None:
        """Monotonic time (`time.monotonic`) since which the link has been up; None while it is down."""
        return self._connected_since

    @property
    def max_payload(self) -> int:
        """Bytes that the server takes in one message, headers included."""
        return self._link.client.max_payload

    @property
    def has_jetstream(self) -> bool:
        """Whether the server that we are connected to says that JetStream is on; if not, another one of its cluster may have it."""
        return self._link.client.has_jetstream

    @property
    def is_deaf(self) -> bool:
        """Whether the server has said that we may hear no answers, so that requests are refused before they are sent."""
        return isinstance(self._requests, DeniedRequests)

    @property
    def is_fast(self) -> bool:
        """Whether the fast layer serves."""
        return isinstance(self._link, FastLink)

    def subscribe(self, subject: str, callback: Callback, queue: str = "") -> Subscription:
        """Call `callback` with every message of `subject`; of equal `queue` names one subscriber gets each message."""
        self.check_loop()
        _check_subject(subject)
        if queue:
            _check_subject(queue)
        subscription = Subscription(self, self.next_sid(), subject, queue, callback)
        self._link.subscribe(subscription)
        return subscription

    def check_loop(self) -> None:
        """Refuse another event loop than that in which the connection was opened; calls that are rare, or come first, look.

        Raises:
            PermanentError: says what to do.
        """
        if asyncio.get_running_loop() is not self._loop:
            raise PermanentError("this NATS connection was opened in another event loop (another thread, or an asyncio.run before); open one in each loop")

    def next_sid(self) -> int:
        """Return the number of a subscription to come."""
        self._sid += 1
        return self._sid

    def attach(self, subscriber: Subscriber) -> None:
        """Add a subscriber of the caller's own making, with a `sid` from `next_sid`: where a hundred thousand are held, their size counts."""
        self._link.subscribe(subscriber)

    async def drain_subscription(self, subscription: Subscriber, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """End a subscription as `Subscription.drain` says."""
        self.stop_subscription(subscription, keep_handler=True)
        try:
            await self.flush(timeout_s)
        except PermissionDenied as exc:
            raise RequestTimeout(f"the server cannot confirm that a subscription has ended: {exc}") from exc
        finally:
            self.stop_subscription(subscription, keep_handler=False)

    def stop_subscription(self, subscription: Subscriber, *, keep_handler: bool) -> None:
        """End a subscription; `Subscription` is the way to call it."""
        self._link.unsubscribe(subscription)
        if not keep_handler:
            self._link.forget(subscription)

    def publish(self, subject: str, payload: bytes, headers: bytes = b"", reply: str = "") -> None:
        """Queue a message for the next write to the socket.

        Args:
            headers: lines as `aether_api.headers.encode_headers` returns them.

        Raises:
            Disconnected: the link is down; nothing was sent.
            Backpressure: too many bytes wait for the socket; nothing was sent.
            PayloadTooLarge: the server would refuse it.
        """
        _check_subject(subject)
        self._publish(subject, reply, headers, payload)

    def respond(self, reply: bytes, payload: bytes) -> None:
        """Answer a message by its reply subject, and raise as `publish`; nothing is done for one whose sender awaits nothing, or wants the answer on a subject of ours."""
        if not reply:
            return
        if reply.startswith(NEVER_ANSWERED):
            return self._refuse_reply(reply)
        if self._connected_since is None:
            raise self._build_disconnected()
        if len(payload) > self._link.client.max_payload:
            raise PayloadTooLarge(f"an answer of {len(payload)} bytes exceeds the server's max_payload of {self.max_payload}")
        self._link.respond(reply, payload)

    def request(self, subject: str, payload: bytes, headers: bytes = b"", timeout_s: float = REQUEST_TIMEOUT_S) -> asyncio.Future[Message]:
        """Publish and return the future of the one reply.

        The future fails with `RequestTimeout`, `NoResponders`, `PermissionDenied` (nobody got it; of `subscribe` the outcome is unknown) or `Disconnected` (outcome unknown).

        Raises:
            Disconnected, Backpressure, PayloadTooLarge: at once, as `publish`; nothing was sent.
        """
        reply, future = self._requests.add(subject, timeout_s)
        self._publish_request(subject, payload, headers, reply)
        return future

    def begin(self, exchange: Exchange, payload: bytes, headers: bytes, timeout_s: float) -> None:
        """Publish to the exchange's subject, which the caller has built, and hand it what comes back: a request without a future, for the hot path.

        Raises:
            Disconnected, Backpressure, PayloadTooLarge: at once, as `publish`; nothing was sent.
        """
        reply = self._requests.register(exchange, timeout_s)
        try:
            self._publish(exchange.subject, reply, headers, payload)
        except AetherError:
            self._requests.discard(reply)
            raise

    def expect(self, exchange: Exchange, timeout_s: float) -> str:
        """Register something that waits for what the caller has asked for by other means: it fails as a request does; `discard` what is returned when it is over."""
        return self._requests.register(exchange, timeout_s)

    def discard(self, reply: str) -> None:
        """Forget what `expect` returned."""
        self._requests.discard(reply)

    def request_many(self, subject: str, payload: bytes, headers: bytes = b"", timeout_s: float = REQUEST_TIMEOUT_S) -> asyncio.Future[list[Message]]:
        """Publish and return the future of all replies up to the first with a status, which is the last of the list.

        This is how the server answers batched Direct Gets. Fails and raises as `request`.
        """
        reply, future = self._requests.add_many(subject, timeout_s)
        self._publish_request(subject, payload, headers, reply)
        return future

    def request_each(self, subject: str, payloads: Sequence[bytes], timeout_s: float = REQUEST_TIMEOUT_S) -> asyncio.Future[list[Message]]:
        """Publish several questions, at least one, and return the future of one reply to each, in the order in which they come.

        Costs a third of as many requests. Fails and raises as `request`.
        """
        reply, future = self._requests.add_each(subject, len(payloads), timeout_s)
        try:
            _check_subject(subject)
            if self._connected_since is None:
                raise self._build_disconnected()
            self._link.publish_each(subject, reply, payloads)
        except AetherError:
            self._requests.discard(reply)
            raise
        return future

    def write_queued(self) -> None:
        """Hand what is queued to the socket now, for a caller that knows that nothing is to follow; otherwise it leaves when the loop comes round."""
        self._link.write_queued()

    async def flush(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """Wait until the server has handled everything sent before, and all it sent back has reached its callbacks.

        The round trip is a message to our own inbox: nats-py's flush leaves a trap behind when it is given up.

        Raises:
            Disconnected, RequestTimeout: it is not known whether it has.
            PermissionDenied: nor can it be, since the user may not write to itself, or hear itself.
        """
        self.check_loop()
        reply, future = self._requests.add("flush", timeout_s)
        self._publish_request(reply, b"", b"", "")
        await future

    async def wait_connected(self) -> None:
        """Wait until the link is up; callers bound it with `asyncio.timeout`."""
        await self._up.wait()

    def on_disconnect(self, listener: Listener) -> None:
        """Call `listener` whenever the link is lost."""
        self._on_disconnect.append(listener)

    def on_reconnect(self, listener: Listener) -> None:
        """Call `listener` whenever the link is up again and all subscriptions are restored."""
        self._on_reconnect.append(listener)

    def on_close(self, listener: Listener) -> None:
        """Call `listener` when the connection is closed: nothing comes any more, whoever waits for something waits in vain."""
        self._on_close.append(listener)

    async def drain(self, timeout_s: float = REQUEST_TIMEOUT_S) -> None:
        """End all subscriptions, let callbacks see what was on its way, and close."""
        ended = [subscriber for subscriber in self._link.active() if subscriber.sid]
        for subscriber in ended:
            self.stop_subscription(subscriber, keep_handler=True)
        if self.is_connected:
            await self._flush_quietly(timeout_s)
        for subscriber in ended:
            self._link.forget(subscriber)
        await self.close()

    async def close(self, timeout_s: float = CLOSE_TIMEOUT_S) -> None:
        """Send what is queued and end the connection; requests under way fail. Bounded by `timeout_s`, harmless to repeat."""
        if self._closed:
            return
        if self.is_connected:
            await self._flush_quietly(timeout_s / 2)
        self._closed = True
        self._mark_down()
        self._tell_closed()
        try:
            async with asyncio.timeout(timeout_s / 2):
                await self._link.close()
        except TimeoutError:
            self._link.abort()
        except (nats_errors.Error, OSError, RuntimeError) as exc:  # uvloop raises RuntimeError for a socket that is closed already
            logger.debug("closing the NATS connection failed", extra={logs.REASON: str(exc)})

    def _start(self) -> None:
        self._link.subscribe(self._table)
        self._connected_since = time.monotonic()
        self._up.set()

    def _publish(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        if self._connected_since is None:
            raise self._build_disconnected()
        size = len(payload) + (len(headers) + HEADER_FRAME_BYTES if headers else 0)
        if size > self._link.client.max_payload:
            raise PayloadTooLarge(f"a message of {size} bytes for {subject} exceeds the server's max_payload of {self.max_payload}")
        self._link.publish(subject, reply, headers, payload)

    def _publish_request(self, subject: str, payload: bytes, headers: bytes, reply: str) -> None:
        try:
            self.publish(subject, payload, headers, reply)
        except AetherError:
            self._requests.discard(reply or subject)
            raise

    def _refuse_reply(self, reply: bytes) -> None:
        if self._reply_warning.is_due(self._loop.time()):
            logger.warning("a message wants its answer on a subject of Aether or of the server, and gets none", extra={logs.NAME: reply.decode(errors="replace")})

    async def _flush_quietly(self, timeout_s: float) -> None:
        try:
            await self.flush(timeout_s)
        except (Disconnected, RequestTimeout, PermissionDenied) as exc:
            logger.debug("the last flush was not confirmed", extra={logs.REASON: str(exc)})

    def _build_disconnected(self) -> Disconnected:
        if self.is_closed:
            return Disconnected("the NATS connection is closed")
        return Disconnected(f"the link to NATS at {self._settings.describe_servers()} is down; reconnecting")

    def _explain_unopened(self) -> Disconnected:
        where = self._settings.describe_servers()
        if self._refusals:
            how = self._settings.describe_login()
            return Disconnected(
                f"NATS at {where} was reached, and refused us, who came {how} ({self._last_error}): check user, password, token or credentials, and the server's users"
            )
        return Disconnected(f"cannot reach NATS at {where} within {self._settings.connect_timeout_s:g} s: {self._last_error or 'no answer'}")

    def _mark_down(self) -> bool:
        """Note that the link is lost; returns whether it was up."""
        was_up = self._connected_since is not None
        self._connected_since = None
        self._up.clear()
        if not self._closed:
            self._link.drop_unsent()
        self._requests.fail_all(self._build_disconnected())
        return was_up

    def _on_down(self) -> None:
        was_up = self._mark_down()
        if self._closed:
            return
        if was_up:
            logger.warning("the link to NATS is lost", extra={logs.URL: self._settings.describe_servers(), logs.REASON: str(self._last_error or "")})
            _notify(self._on_disconnect)
        if self.is_closed:  # nats-py gave it up, perhaps while the link was down
            self._tell_closed()

    def _tell_closed(self) -> None:
        if not self._close_told:
            self._close_told = True
            _notify(self._on_close)

    def _on_up(self) -> None:
        if self._closed:
            return
        self._link.restore()
        self._requests = self._table
        self._last_error = None
        self._connected_since = time.monotonic()
        self._up.set()
        logger.warning("the link to NATS is up again", extra={logs.URL: self._settings.describe_servers()})
        _notify(self._on_reconnect)

    def _on_error(self, error: Exception) -> None:
        # What the server said explains more than the reset of the socket that follows it.
        if self._last_error is None or isinstance(self._last_error, OSError) or not isinstance(error, OSError):
            self._last_error = error
        if self._opening is not None and is_refusal(str(error)):
            self._on_refused(self._opening)
        denied = read_denial(str(error))
        if denied is not None:
            self._on_denied(denied)
        else:
            logger.debug("nats-py reports an error and goes on", extra={logs.REASON: repr(error)})

    def _on_refused(self, opening: asyncio.Timeout) -> None:
        now_s = self._loop.time()
        self._refused_since = self._refused_since if self._refusals else now_s
        self._refusals += 1
        if is_refused_for_good(self._refusals, now_s - self._refused_since) and not opening.expired():
            opening.reschedule(now_s)

    def _on_denied(self, denied: PermissionDenied) -> None:
        """End what waits for what the server has dropped; nats-py hands its words on in lower case."""
        logger.error("a permission is missing: %s", denied, extra={logs.NAME: denied.subject, logs.REASON: denied.action})
        if denied.action == "publish":
            self._table.fail_denied(denied, exact=self.is_fast)
        elif denied.subject == (self._table.subject if self.is_fast else self._table.subject.lower()):
            self._requests = DeniedRequests(self._loop)
            self._table.fail_all(build_inbox_denial())
        else:
            for subscriber in self._link.active():
                if isinstance(subscriber, Subscription) and (subscriber.subject if self.is_fast else subscriber.subject.lower()) == denied.subject:
                    subscriber.denied = denied


def is_refused_for_good(refusals: int, refused_s: float) -> bool:
    """Tell whether to give up after so many refusals in so many seconds."""
    return refusals >= REFUSALS_MAX and refused_s >= REFUSED_S


def _build_link(settings: NatsSettings, events: LinkEvents, loop: asyncio.AbstractEventLoop) -> Link:
    refusal = find_refusal(settings)
    if not refusal:
        return FastLink(settings, events, loop)
    if settings.fast:
        logger.warning("NATS runs without its fast layer", extra={logs.REASON: refusal})
    return PlainLink(settings, events, loop)


def _notify(listeners: list[Listener]) -> None:
    for listener in listeners:
        try:
            listener()
        except Exception:  # the connection supervises its listeners: one that raises must not hide the change from others
            logger.exception("a listener of the NATS link failed")


def _check_subject(subject: str) -> None:
    """Refuse what would end the subject inside a protocol line and forge another line."""
    if not subject or " " in subject or not subject.isprintable():
        raise InvalidName(f"{subject!r} is not a subject: it must not be empty nor hold blanks or control characters")
