"""The stored events of all nodes: who subscribes is told of each, in order for each actor, and of everything that it missed.

The server announces each commit on `stored` once it is in the stream (RePublish), so a refused commit is never seen, a
runtime that dies after its ack leaves no hole, and commits of foreign writers are announced, too. An announcement travels
once: a cut link or a slow subscriber loses some. `aether_nats.deliveries` finds every such hole by sequences; this module asks
the log where announcements cannot tell:

- after a reconnect and after an overflow it reads what each stream got since (`sweep`); what a replica did not have, which may
  have been behind, once more a minute later;
- every `compare_every_s` it compares the last commits of the actors that it knows with the log's, and how much it heard with how much
  was stored (`hearing`), which finds what was lost within the server's cluster, also of actors of which nothing was ever heard; a
  namespace that announces nothing (`broadcast: off`) is swept then.

Both happen only while the subscriber asks for the next item. One step that is under way when it gives up its wait goes on to its end (`errand`), and ends with
the subscription at the latest; beyond that nothing runs for one that went away.

    bus = EventBus(connection)
    async with bus.subscribe_to_event_stored("shop", ["Deposited"], "account/*") as subscription:
        async for item in subscription:   # EventStored, Gap, Reset, Overflow, Unreadable
            ...
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

from aether_api.identity import ActorId
from aether_nats.bus_settings import BusSettings, Start
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import ActorVersion, EventStored, Gap, Unreadable
from aether_nats.event_subscription import EventSubscription
from aether_nats.jetstream import JetStream
from aether_nats.missed import MissedReader
from aether_nats.patterns import parse_event_types, parse_pattern


class EventBus:
    """Subscriptions to stored events over one connection; make one for a connection, it lives as long."""

    def __init__(self, connection: NatsConnection, settings: BusSettings | None = None) -> None:
        self._connection = connection
        self._js = JetStream(connection)
        self._settings = settings or BusSettings()
        self._missed = MissedReader(self._js)
        self._subscriptions: set[EventSubscription] = set()
        connection.on_reconnect(self._wake_all)
        connection.on_close(self._wake_all)

    @asynccontextmanager
    async def subscribe_to_event_stored(
        self,
        namespace_pattern: str = "*",
        event_types: Iterable[str] = (),
        actor_pattern: str = "*",
        *,
        known: Mapping[ActorId, ActorVersion] | None = None,
        from_beginning: bool = False,
    ) -> AsyncGenerator[EventSubscription, None]:
        """Subscribe for the length of an `async with` block; once it is entered, nothing that is stored later can be missed unseen.

        Args:
            namespace_pattern: `shop`, `team-*` or `*`; a user of one namespace may be allowed no other.
            event_types: names of events; all for none. What is filtered out still counts as seen.
            actor_pattern: `<model>/<id>`, each exact, a beginning with `*`, or `*`; a model alone means all of its actors.
            known: how far the caller knows some actors; what the log holds beyond it is told first, as gaps.
            from_beginning: tell of everything that the log holds, as gaps; else of what is stored from now on.

        Raises:
            InvalidName: a pattern or a name of an event can never match.
            SettingsInvalid: `known` holds something else.
            PermissionDenied: the user may not subscribe to these actors' events, or not read the log.
            RetryableError: NATS does not answer now.
        """
        pattern, types = parse_pattern(namespace_pattern, actor_pattern), parse_event_types(event_types)
        start = Start(known or {}, from_beginning)
        subscription = EventSubscription(self._js, self._missed, pattern, types, self._settings)
        self._subscriptions.add(subscription)
        try:
            await subscription.open(start)
            yield subscription
        finally:
            self._subscriptions.discard(subscription)
            await subscription.end()

    def fetch_missed(self, gap: Gap) -> AsyncIterator[EventStored | Unreadable]:
        """Read the events of a gap from the log, in order, of all types."""
        return self._missed.read(gap)

    def _wake_all(self) -> None:
        """Let all look into the log: after a reconnect they find what they missed, on a closed connection that there is no log any more."""
        for subscription in self._subscriptions:
            subscription.note_loss()
