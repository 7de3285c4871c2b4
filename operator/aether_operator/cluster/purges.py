"""Puts the finalizer on and takes it off, and between the two deletes an actor's history.

A purge is repeated until it succeeds, since it ends with a tombstone that makes repeating it harmless. Only then the finalizer
goes, and with it the resource. Why one does not succeed is kept for the condition that says what a deletion waits for.

The finalizer comes before the first placement, since nothing is purged of what goes without it: who only hears that a resource is gone cannot
know whether another one of the same identity has begun meanwhile, and a tombstone wins over every epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from aether_api.errors import AetherError, InternalError, KubeConflict, KubeNotFound, PermanentError, StreamUnavailable
from aether_api.identity import ActorId, Epoch
from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject, text_at, value_at
from aether_kube.kinds import ACTORS
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_nats.journal import purge_actor
from aether_nats.streams import read_layout
from aether_operator.cluster.keyed_queue import KeyedQueue
from aether_operator.cluster.observe import Memory
from aether_operator.planning.plan import FinalizerChange, Purge
from aether_operator.planning.snapshot import FINALIZER

WORKERS: Final = 8
"""Purges at once: each is a few round trips to NATS and one write to the API server."""

WRITER: Final = "operator"
"""Who the tombstone names as its writer, in the place of a pod."""


class Purger(Protocol):
    """Deletes the history of an actor."""

    async def purge(self, actor: ActorId, *, epoch: Epoch) -> None:
        """Delete events and snapshots, fenced by the epoch; safe to repeat."""
        ...


class JetStreamPurger:
    """The purger of actors whose history lies in JetStream."""

    def __init__(self, connection: NatsConnection, check: Callable[[], None] = lambda: None) -> None:
        """Purge over this connection.

        Args:
            check: called before each purge; what it raises stops it.
        """
        self._connection = connection
        self._check = check

    async def purge(self, actor: ActorId, *, epoch: Epoch) -> None:
        """Delete the history; a namespace without streams holds none."""
        layout = await read_layout(self._connection, actor.namespace)
        self._check()
        if layout is not None:
            await purge_actor(self._connection, layout.partitions, actor, epoch=epoch, writer=WRITER)


class Purges:
    """Finalizers to change and histories to delete, by Actor."""

    def __init__(self, client: KubeClient, purger: Purger, memory: Memory, replan: Callable[[], None], *, is_out_of_reach: Callable[[ObjectKey], bool]) -> None:
        """Make the work; `queue` is to be run.

        Args:
            replan: asked for when a purge failed in a new way, so that its condition says so.
            is_out_of_reach: tells of a pool that its histories may lie where the purger does not look.
        """
        self._client = client
        self._purger = purger
        self._memory = memory
        self._replan = replan
        self._is_out_of_reach = is_out_of_reach
        self._pending: dict[ObjectKey, FinalizerChange | Purge] = {}
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue("finalizer", self._handle, workers=WORKERS)

    def submit(self, work: FinalizerChange | Purge) -> None:
        """Do this soon; the same work is not begun twice, however often plans name it."""
        key = work.actor.key
        if not _is_same(self._pending.get(key), work):
            self._pending[key] = work
            self.queue.add(key)

    async def _handle(self, key: ObjectKey) -> None:
        work = self._pending.get(key)
        if work is None:
            return
        try:
            if isinstance(work, Purge):
                await self._purge(work)
            await self._set_finalizer(key, work.actor.uid, wanted=isinstance(work, FinalizerChange) and work.wanted)
        except InternalError:
            raise
        except AetherError as exc:
            self._note(work, exc)
            raise
        self._memory.purge_problems.pop(key, None)
        if self._pending.get(key) is work:
            del self._pending[key]

    async def _purge(self, work: Purge) -> None:
        pool = work.actor.pool_key
        if self._is_out_of_reach(pool):
            raise StreamUnavailable(
                f"pool {pool.name} may keep the events on another NATS: its spec.nats names other servers or another account than the operator's, as none of its "
                "pods is heard; correct spec.nats, or start a pod that is heard"
            )
        await self._purger.purge(work.identity, epoch=work.epoch)

    def _note(self, work: FinalizerChange | Purge, error: AetherError) -> None:
        """Keep why an actor does not go, or start, for its condition; a conflict is over before anybody could read of it."""
        key = work.actor.key
        is_waited_for = isinstance(work, Purge) or work.wanted
        if is_waited_for and not isinstance(error, KubeConflict) and self._memory.purge_problems.get(key) != str(error):
            self._memory.purge_problems[key] = str(error)
            self._replan()
        if isinstance(error, PermanentError) and self._pending.get(key) is work:
            # Planned again with the next snapshot: somebody may mend what is broken meanwhile.
            del self._pending[key]

    async def _set_finalizer(self, key: ObjectKey, uid: str, *, wanted: bool) -> None:
        """Read the Actor and write its finalizers back, unless they are as they shall be.

        Raises:
            KubeConflict: somebody changed it meanwhile; try again.
        """
        path = ACTORS.path(key.namespace, key.name)
        try:
            document = await self._client.get(path)
            finalizers = _finalizers(document)
            if text_at(document, "metadata", "uid") != uid or (FINALIZER in finalizers) == wanted:
                return
            changed = [*finalizers, FINALIZER] if wanted else [name for name in finalizers if name != FINALIZER]
            version = text_at(document, "metadata", "resourceVersion")
            await self._client.patch_merge(path, {"metadata": {"resourceVersion": version, "finalizers": changed}})
        except KubeNotFound:
            return


def _is_same(known: FinalizerChange | Purge | None, work: FinalizerChange | Purge) -> bool:
    if known is None or type(known) is not type(work) or known.actor.uid != work.actor.uid:
        return False
    return not isinstance(known, FinalizerChange) or not isinstance(work, FinalizerChange) or known.wanted == work.wanted


def _finalizers(document: JsonObject) -> list[str]:
    value = value_at(document, "metadata", "finalizers")
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []
