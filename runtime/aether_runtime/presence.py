"""Who is alive: this pod's heartbeats, and those of the namespace's other pods.

Heartbeats tell the operator which process (pod UID and boot id) serves, and tell pods where an actor without a resource
belongs: rendezvous hashing over the live pods names the same pod everywhere, without any agreement.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Callable, Iterable
from typing import Final

from aether_api import logs
from aether_api.control import Heartbeat, PodState, decode_heartbeat, encode
from aether_api.errors import AetherError, InvalidEnvelope
from aether_api.identity import ActorId, PodIdentity, PodUid, PoolName
from aether_api.subjects import heartbeat_subject, heartbeat_wildcard, ping_subject
from aether_nats.connection import NatsConnection
from aether_nats.message import Message

logger = logging.getLogger(__name__)

HEARTBEAT_S: Final = 0.3
"""Seconds between heartbeats: three fit into the second after which a silent pod is suspected."""

LIVE_S: Final = 1.0
"""Seconds after its last heartbeat for which a pod counts as live."""


def choose_pod(actor: ActorId, pods: Iterable[PodUid]) -> PodUid | None:
    """Return the pod with the highest hash for the actor (rendezvous hashing); None without pods."""
    return max(pods, key=lambda uid: (hashlib.blake2b(f"{uid}/{actor}".encode(), digest_size=8).digest(), uid), default=None)


class LivePods:
    """The ready pods of a namespace, as their heartbeats show them."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._seen: dict[PodUid, float] = {}
        self._changed_s = monotonic()

    @property
    def settled_s(self) -> float:
        """Seconds since a pod last came or went."""
        return self._monotonic() - self._changed_s

    def take(self, heartbeat: Heartbeat) -> None:
        """Note a heartbeat; a leaving pod is out at once."""
        uid, now_s = PodUid(heartbeat.pod_uid), self._monotonic()
        if (uid in self._seen) == (heartbeat.state == "leaving"):
            self._changed_s = now_s
        if heartbeat.state == "leaving":
            self._seen.pop(uid, None)
        else:
            self._seen[uid] = now_s

    def live(self) -> list[PodUid]:
        """Return the pods heard of within the last second, in order, and forget the others."""
        horizon = self._monotonic() - LIVE_S
        gone = [uid for uid, time in self._seen.items() if time < horizon]
        for uid in gone:
            del self._seen[uid]
            self._changed_s = self._monotonic()
        return sorted(self._seen)


class Presence:
    """Sends heartbeats, answers pings, and listens to the other pods."""

    def __init__(self, connection: NatsConnection, namespace: str, pool: PoolName, pod: PodIdentity, *, pod_name: str, held: Callable[[], int]) -> None:
        self._connection = connection
        self._namespace, self._pool, self._pod, self._pod_name = namespace, pool, pod, pod_name
        self._held = held
        self.state: PodState = "ready"
        self.pods = LivePods(asyncio.get_running_loop().time)

    async def run(self) -> None:
        """Send heartbeats until cancelled; a lost link skips beats and nothing else."""
        ping = self._connection.subscribe(ping_subject(self._namespace, self._pod.uid), self._on_ping)
        others = self._connection.subscribe(heartbeat_wildcard(self._namespace), self._on_heartbeat)
        try:
            while True:
                self.beat()
                await asyncio.sleep(HEARTBEAT_S)
        finally:
            ping.unsubscribe()
            others.unsubscribe()

    def beat(self) -> None:
        """Send one heartbeat now."""
        heartbeat = self._build()
        self.pods.take(heartbeat)
        try:
            self._connection.publish(heartbeat_subject(self._namespace, self._pool, self._pod.uid), encode(heartbeat))
        except AetherError as exc:
            logger.debug("a heartbeat could not be sent", extra={logs.REASON: str(exc)})

    def _build(self) -> Heartbeat:
        return Heartbeat(self._pod.uid, self._pod.boot_id, self._pod_name, self.state, self._held())

    def _on_ping(self, message: Message) -> None:
        if message.raw_reply:
            self._connection.respond(message.raw_reply, encode(self._build()))

    def _on_heartbeat(self, message: Message) -> None:
        try:
            self.pods.take(decode_heartbeat(message.payload))
        except InvalidEnvelope as exc:
            logger.warning("a heartbeat cannot be read", extra={logs.REASON: str(exc)})
