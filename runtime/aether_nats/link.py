"""What a connection needs from the layer below it, and how nats-py is opened for either of the two layers.

There are two: `fast` replaces nats-py's parser and write path, `plain` uses nothing but nats-py's public methods. Both pass
the same tests; which one runs is decided once, at opening.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

from nats import errors as nats_errors
from nats.aio.client import Client, Server, Srv

from aether_nats.settings import PING_INTERVAL_S, PINGS_OUTSTANDING_MAX, NatsSettings, build_tls_context, read_login

RECONNECT_DELAY_FIRST_S: Final = 0.05
"""Seconds before the second attempt to reconnect: a server that restarts is back within a tenth."""

RECONNECT_DELAY_MAX_S: Final = 2.0
"""Seconds between attempts at most: hundreds of pods at this pace are no load, and a person hardly waits."""

DIAL_TIMEOUT_S: Final = 2
"""Seconds for one attempt to reach one server; the next server may be nearer."""

TASK_NAMES: Final = ("_reading_task", "_ping_interval_task", "_flusher_task")
"""Where nats-py's client keeps the tasks that work on its socket."""

DIAL_PAUSE_S: Final = 1
"""Seconds between attempts at the same server while the connection is being opened for the first time."""


@dataclass(frozen=True, slots=True)
class LinkEvents:
    """What a link tells its connection; all are called in the event loop and return at once.

    Attributes:
        up: connected again; subscriptions are to be restored.
        down: the link is lost; may be told more than once.
        error: something that nats-py reports and heals itself.
    """

    up: Callable[[], None]
    down: Callable[[], None]
    error: Callable[[Exception], None]


class Subscriber(Protocol):
    """One subscription, as a link keeps it: called as a `Handler` with each of its messages."""

    @property
    def sid(self) -> int:
        """Number of the subscription, unique in its connection."""
        ...

    @property
    def subject(self) -> str:
        """What it subscribes to."""
        ...

    @property
    def queue(self) -> str:
        """The queue group, or empty."""
        ...

    def __call__(self, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Take a message; must not raise and must not block."""


class Link(Protocol):
    """One connection to a server, with synchronous writes."""

    @property
    def client(self) -> StrictClient:
        """The nats-py client that carries the link."""
        ...

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a subscription; it survives reconnects until `unsubscribe`."""

    def unsubscribe(self, subscriber: Subscriber) -> None:
        """Tell the server to send no more; what is on its way still reaches the subscriber. Harmless to repeat."""

    def forget(self, subscriber: Subscriber) -> None:
        """Drop a subscription with what is on its way."""

    def active(self) -> list[Subscriber]:
        """Return the subscriptions that were not ended."""
        ...

    def publish(self, subject: str, reply: str, headers: bytes, payload: bytes) -> None:
        """Queue a message for the socket, or raise `Backpressure`."""

    def publish_each(self, subject: str, reply: str, payloads: Sequence[bytes]) -> None:
        """Queue short messages of one subject, all or none, or raise `Backpressure`."""

    def respond(self, reply: bytes, payload: bytes) -> None:
        """Queue an answer, or raise `Backpressure`."""

    def write_queued(self) -> None:
        """Hand what is queued to the socket now; otherwise that happens when the loop comes round."""

    def restore(self) -> None:
        """Take up again after a reconnect; comes before any publish."""

    def drop_unsent(self) -> None:
        """Throw away what waits for a socket that is gone."""

    async def open(self) -> None:
        """Connect; retries until it is cancelled."""

    async def close(self) -> None:
        """End the link for good."""

    def abort(self) -> None:
        """Drop the socket without waiting for what it still holds."""


class StrictClient(Client):
    """nats-py's client, except for four things: it takes a demand for TLS seriously, where nats-py would go on in the clear if the server asks for
    no TLS; it closes a socket on which it could not shake hands, where nats-py leaves it to the garbage collector; a `close` that nobody has cancelled is not
    cancelled by what it ends; and of a try to reconnect that
    fails after that it ends socket and tasks, where nats-py pings and flushes twice from then on.

    Attributes:
        has_jetstream: whether the server says that JetStream is on; in a cluster another one may have it.
    """

    def __init__(self, *, demands_tls: bool) -> None:
        super().__init__()
        self._demands_tls = demands_tls
        self.has_jetstream = True

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Look at the server's first line, before credentials are sent."""
        if initial_connection and self._demands_tls and not (info.get("tls_required") or self.options.get("tls_handshake_first")):
            raise nats_errors.Error("nats: TLS is demanded and the server does not offer it")
        if initial_connection:
            self.has_jetstream = bool(info.get("jetstream"))
        await super()._process_info(info, initial_connection)

    async def _connect_to_server(self, s: Srv) -> None:
        """Dial; the try before this one may have come far before it failed."""
        self._end_try()
        await super()._connect_to_server(s)

    async def _process_connect_init(self) -> None:
        """Shake hands with a server, or end with the socket closed."""
        try:
            await super()._process_connect_init()
        except BaseException:
            self._end_try()
            raise

    async def close(self) -> None:
        """End for good, with all tasks, also when this is given up while the last bytes wait for a slow socket."""
        task = asyncio.current_task()
        before = task.cancelling() if task is not None else 0
        try:
            await super().close()
        except asyncio.CancelledError:
            # A try to reconnect, which nats-py cancels here, may wait for the end of the same socket, and its cancellation then reaches us, too.
            if task is not None and task.cancelling() > before:
                raise
        finally:
            self._end_tasks()

    def _end_try(self) -> None:
        self._end_tasks()
        if self._transport is not None:
            self._transport.close()

    def _end_tasks(self) -> None:
        for name in TASK_NAMES:
            task = cast("asyncio.Task[None] | None", getattr(self, name, None))
            if task is not None and task is not asyncio.current_task():
                task.cancel()


class Backoff:
    """Chooses the server and the delay of each attempt to reconnect: the least tried server, delays doubling up to a bound."""

    def __init__(self) -> None:
        self._attempts = 0

    def reset(self) -> None:
        """Begin anew after a success."""
        self._attempts = 0

    def choose(self, servers: list[Server], _info: object) -> tuple[Server | None, float]:
        """Return what nats-py's `reconnect_to_server_handler` asks for.

        The delay is drawn between half and all of its bound, so that many clients of a restarted server do not arrive together.
        """
        bound = min(RECONNECT_DELAY_MAX_S, RECONNECT_DELAY_FIRST_S * 2 ** min(self._attempts, 16))
        self._attempts += 1
        return min(servers, key=lambda server: server.reconnects), bound * random.uniform(0.5, 1.0)


async def connect_client(client: Client, settings: NatsSettings, events: LinkEvents) -> None:
    """Connect nats-py with our pings and back-off; retries for ever, so callers bound it in time."""
    backoff = Backoff()

    async def on_up() -> None:
        backoff.reset()
        events.up()

    async def on_down() -> None:
        events.down()

    async def on_error(error: Exception) -> None:
        events.error(error)

    login = read_login(settings)
    await client.connect(
        servers=list(settings.servers),
        name=settings.name,
        error_cb=on_error,
        disconnected_cb=on_down,
        closed_cb=on_down,
        reconnected_cb=on_up,
        reconnect_to_server_handler=backoff.choose,
        max_reconnect_attempts=-1,
        reconnect_time_wait=DIAL_PAUSE_S,
        connect_timeout=DIAL_TIMEOUT_S,
        ping_interval=PING_INTERVAL_S,
        max_outstanding_pings=PINGS_OUTSTANDING_MAX,
        pending_size=settings.pending_bytes_max,
        tls=build_tls_context(settings),
        tls_hostname=settings.tls_hostname or None,
        tls_handshake_first=settings.tls_first,
        user=login.user or None,
        password=login.password or None,
        token=settings.token or None,
        user_credentials=login.credentials_path,
        nkeys_seed=str(settings.nkey_seed_path) if settings.nkey_seed_path else None,
    )
