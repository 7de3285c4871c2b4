"""One node: a runtime with its VMs, a version cache, and a projection that both follow the events of all nodes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aether_runtime import (
    ActorId,
    ActorModel,
    ActorVersion,
    EventBus,
    EventStore,
    EventStored,
    EventSubscription,
    Gap,
    NatsConnection,
    NatsSettings,
    Reply,
    Reset,
    RetryableError,
    Runtime,
    RuntimeMessage,
    RuntimeSettings,
    open_runtime,
)

NAMESPACE = "shop"

PATIENCE_S = 30.0
"""Seconds after which something that the example waits for has failed."""

RETRY_S = 0.5
"""Seconds between tries to read what was missed."""

EFFECTS = {"Deposited": 1, "Withdrawn": -1}


@dataclass
class Balances:
    """A projection: the balance of every account, from events alone.

    Attributes:
        gaps: what was missed and read from the log later.
    """

    balances: dict[ActorId, int] = field(default_factory=dict[ActorId, int])
    versions: dict[ActorId, int] = field(default_factory=dict[ActorId, int])
    gaps: list[Gap] = field(default_factory=list[Gap])

    def apply(self, stored: EventStored) -> None:
        """Take the next event of an account; with more accounts than `BusSettings.actors_max` one may come again, and counts once."""
        if stored.version <= self.versions.get(stored.actor, 0):
            return
        change = EFFECTS.get(stored.event.type, 0) * int(stored.event.fields().get("amount", 0))
        self.balances[stored.actor] = self.balances.get(stored.actor, 0) + change
        self.versions[stored.actor] = stored.version

    def forget(self, actor: ActorId) -> None:
        """Begin an account anew: its history was purged."""
        self.balances.pop(actor, None)
        self.versions.pop(actor, None)


@dataclass
class Node:
    """What one process of a cluster would hold."""

    name: str
    runtime: Runtime
    store: EventStore
    projection: Balances

    async def send(self, actor: ActorId, command: str, **fields: object) -> Reply:
        """Send a command through this node; the actor may live on any."""
        return await self.runtime.send_message(RuntimeMessage.build(actor, command, fields, timeout_s=PATIENCE_S))

    def holds(self, actor: ActorId) -> bool:
        """Whether the actor lives here."""
        return actor in self.runtime.get_active_vms()

    async def follow(self, subscription: EventSubscription) -> None:
        """Keep projection and version cache current with the events of all nodes."""
        async for item in subscription:
            self.store.take_delivery(item)
            if isinstance(item, EventStored):
                self.projection.apply(item)
            elif isinstance(item, Gap):
                self.projection.gaps.append(item)
                await self.fill(subscription, item)
            elif isinstance(item, Reset):
                self.projection.forget(item.actor)

    async def fill(self, subscription: EventSubscription, gap: Gap) -> None:
        """Read what was missed; while the log cannot be read, try again from the beginning: the projection passes over what it has. `complete()` does this by itself."""
        while True:
            try:
                async for missed in subscription.fetch_missed(gap):
                    if isinstance(missed, EventStored):
                        self.projection.apply(missed)
                return
            except RetryableError as error:
                await asyncio.sleep(max(RETRY_S, error.retry_after_s))


@asynccontextmanager
async def connected(url: str) -> AsyncGenerator[NatsConnection, None]:
    """Connect for the length of a `with` block."""
    connection = await NatsConnection.open(NatsSettings((url,)))
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def running_node(name: str, url: str, model: ActorModel, *, known: Mapping[ActorId, ActorVersion] | None = None) -> AsyncGenerator[Node, None]:
    """Run a node for the length of a `with` block.

    Args:
        known: how far it knows some actors; it is told what the log holds beyond that.
    """
    settings = RuntimeSettings(source="none", namespace=NAMESPACE, nats_url=url, pod_uid=name, pod_name=name, http_port=0)
    async with connected(url) as connection, open_runtime(settings) as runtime, asyncio.TaskGroup() as tasks:
        runtime.load_model(model)
        async with runtime, EventBus(connection).subscribe_to_event_stored(NAMESPACE, known=known) as subscription:
            node = Node(name, runtime, await EventStore.open(connection, NAMESPACE), Balances())
            following = tasks.create_task(node.follow(subscription), name=f"events for {name}")
            yield node
            following.cancel()  # it may wait for a log that nobody reads any more


async def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until a condition holds, or fail with what was waited for."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                await asyncio.sleep(0.02)
    except TimeoutError as exc:
        raise AssertionError(f"it never came true that {what}") from exc
