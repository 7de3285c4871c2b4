"""The operator and the Kubernetes API of a run: who decides where actors with a resource live.

Both are simple on purpose. What matters is what pods meet: assignments over NATS that may be lost, a watch that tells the same some time
later, questions that are answered from a cache, epochs that rise with each move, and moves of actors whose pods only seem to be gone.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from aether_api.control import Action, Assignment, AssignmentItem, decode_heartbeat, encode
from aether_api.errors import AetherError, InvalidEnvelope
from aether_api.identity import ActorId, Epoch, PodUid, PoolName
from aether_api.subjects import assign_subject, heartbeat_wildcard
from aether_nats.connection import NatsConnection
from aether_nats.message import Message
from aether_runtime.ports import ActorReport, DesiredActor, DesiredListener, Home
from aether_runtime.presence import LivePods
from tests.histories.cluster import NAMESPACE

if TYPE_CHECKING:
    from tests.simulation.world import World

POOL: Final = PoolName("default")

LOOK_S: Final = 0.3
"""Seconds between looks at who lives."""

SNAPSHOT_EVERY: Final = 5
"""Events between snapshots: small, so that many are taken and used."""

ASSIGN_TIMEOUT_S: Final = 0.5

CACHE_LAG_MAX_S: Final = 1.0
"""Seconds by which what a pod knows of placements may be old."""


@dataclass(slots=True)
class Registry:
    """The actors' resources, with every placement that they ever had.

    Attributes:
        history: times and placements, oldest first.
        fenced_by: the highest epoch that a pod met in the log of an actor.
    """

    history: dict[ActorId, list[tuple[float, Home]]] = field(default_factory=dict[ActorId, list[tuple[float, Home]]])
    fenced_by: dict[ActorId, Epoch] = field(default_factory=dict[ActorId, Epoch])

    def find(self, actor: ActorId, at_s: float) -> Home | None:
        """Return where an actor's resource said at a time that it lives."""
        found = [home for since_s, home in self.history.get(actor, ()) if since_s <= at_s]
        return found[-1] if found else None

    def now(self, actor: ActorId) -> Home:
        """Return where it lives."""
        return self.history[actor][-1][1]

    def epoch(self, actor: ActorId) -> Epoch:
        """Return the epoch of its placement."""
        known = self.history.get(actor)
        return known[-1][1].desired.epoch if known else Epoch(0)

    def place(self, actor: ActorId, pod: PodUid, at_s: float, *, epoch: Epoch, idle_after_s: float) -> None:
        """Move an actor."""
        desired = DesiredActor(actor, actor.id, f"uid-{actor.id}", epoch, len(self.history.get(actor, ())) + 1, SNAPSHOT_EVERY, idle_after_s=idle_after_s)
        self.history.setdefault(actor, []).append((at_s, Home(pod, desired)))


class Operator:
    """Places actors on pods that live, and moves them for no reason now and then."""

    def __init__(self, world: World, source: random.Random) -> None:
        self._world = world
        self._random = source
        self._connection: NatsConnection | None = None
        self._boots: dict[PodUid, str] = {}
        self._pods: LivePods | None = None
        self._told: dict[ActorId, int] = {}
        self._owed: list[Home] = []

    async def run(self, connection: NatsConnection) -> None:
        """Look at who lives and place actors, until cancelled."""
        self._connection, self._pods = connection, LivePods(asyncio.get_running_loop().time)
        connection.subscribe(heartbeat_wildcard(NAMESPACE), self._on_heartbeat)
        while True:
            await asyncio.sleep(LOOK_S)
            if connection.is_connected:
                self._look()
                await self._tell()

    def move(self, actor: ActorId, pod: PodUid) -> None:
        """Place an actor on a pod, at an epoch that is higher than any before."""
        registry, loop = self._world.registry, asyncio.get_running_loop()
        raised = max(registry.epoch(actor) + 1, registry.fenced_by.get(actor, Epoch(0)) + 1)
        idle_after_s = self._random.choice((0.0, 0.0, 3.0))
        registry.place(actor, pod, loop.time(), epoch=Epoch(raised), idle_after_s=idle_after_s)
        self._world.log(f"operator places {actor.id} on {pod} at epoch {raised}")

    def _look(self) -> None:
        live = self._live()
        for actor in self._world.placed:
            known = self._world.registry.history.get(actor)
            home = known[-1][1] if known else None
            is_outranked = home is not None and self._world.registry.fenced_by.get(actor, Epoch(0)) > home.desired.epoch
            if live and (home is None or is_outranked or home.pod_uid not in live):
                self.move(actor, self._random.choice(live))

    async def _tell(self) -> None:
        """Tell new pods of their actors, and old ones, perhaps much later, that they are theirs no more."""
        for actor in self._world.placed:
            homes, told = [home for _, home in self._world.registry.history.get(actor, ())], self._told.get(actor, 0)
            if len(homes) > told:
                self._told[actor] = len(homes)
                self._owed += homes[max(0, told - 1) : -1]
                await self._assign(homes[-1], "adopt")
        for home in list(self._owed):
            if not self._world.faults.happens(self._world.faults.climate.release_loss) and (home.pod_uid not in self._world.pods or await self._assign(home, "release")):
                self._owed.remove(home)  # a pod that is only silent hears of it when it is back

    def _live(self) -> list[PodUid]:
        return [] if self._pods is None else self._pods.live()

    async def _assign(self, home: Home, action: Action) -> bool:
        """Tell a pod, and return whether it answered; an adoption is not told twice, since the watch tells it as well."""
        desired, boot = home.desired, self._boots.get(home.pod_uid)
        if boot is None or self._connection is None:
            return False
        item = AssignmentItem(
            action,
            desired.name,
            desired.uid,
            desired.actor.model,
            desired.actor.id,
            desired.epoch,
            desired.generation,
            desired.snapshot_every,
            desired.recovery_target_s,
            desired.idle_after_s,
        )
        try:
            message = encode(Assignment(1, home.pod_uid, boot, (item,)))
            await self._connection.request(assign_subject(NAMESPACE, POOL, home.pod_uid), message, b"", ASSIGN_TIMEOUT_S)
        except AetherError:
            return False
        return True

    def _on_heartbeat(self, message: Message) -> None:
        try:
            heartbeat = decode_heartbeat(message.payload)
        except InvalidEnvelope:
            return
        if self._pods is not None:
            self._pods.take(heartbeat)
        self._boots[PodUid(heartbeat.pod_uid)] = heartbeat.boot_id


class Watch:
    """What one pod sees of the resources: all of it, some time later."""

    def __init__(self, world: World, pod: PodUid, source: random.Random) -> None:
        self._world = world
        self._pod = pod
        self._random = source
        self._held: dict[ActorId, DesiredActor] = {}

    async def run(self, listener: DesiredListener) -> None:
        """Tell the listener what is placed here and what is not any more, until cancelled."""
        listener.on_synced()
        while True:
            for actor in self._world.placed:
                home = await self.find(actor)
                held = self._held.get(actor)
                if home is not None and home.pod_uid == self._pod and held != home.desired:
                    self._held[actor] = home.desired
                    listener.on_adopt(home.desired)
                elif home is not None and home.pod_uid != self._pod and held is not None:
                    del self._held[actor]
                    listener.on_release(actor, held.epoch)
            await asyncio.sleep(self._random.uniform(0.1, 1.0 if self._world.faults.is_calm else self._world.faults.climate.watch_lag_s))

    async def find(self, actor: ActorId) -> Home | None:
        """Return where an actor lives, as the cache has it."""
        now_s = asyncio.get_running_loop().time()
        return self._world.registry.find(actor, now_s - self._random.uniform(0, CACHE_LAG_MAX_S) if not self._world.faults.is_calm else now_s)


class Sink:
    """Where pods report."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def write(self, report: ActorReport) -> int:
        """Take note of epochs that the operator did not know of."""
        known = self._world.registry.fenced_by
        actor = report.desired.actor
        known[actor] = max(report.fenced_by, known.get(actor, Epoch(0)))
        return 0

    def say(self, report: ActorReport) -> None:
        """Do nothing: placements are shown at once."""

    def forget(self, actor: ActorId) -> None:
        """Keep what the operator knows."""
