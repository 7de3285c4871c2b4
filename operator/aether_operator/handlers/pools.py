"""Keeps what ActorPools are made of: applies it, brings back what others delete or change, and writes how the pool is.

The number of replicas belongs to whoever scales the pool (a person or an HPA, by its scale subresource) and is only copied down.
Deployments are watched; the other objects are looked at again once in `LOOK_AGAIN_S`. A Deployment counts as untouched while its
generation is the one that our own apply left; values that the server rewrites therefore never cause a second write.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from aether_api import logs
from aether_api.errors import AetherError, InternalError, KubeConflict, KubeForbidden, KubeInvalid, KubeNotFound
from aether_api.v1alpha1.meta import Condition
from aether_kube.apply import differs, is_applied, with_fingerprint
from aether_kube.client import KubeClient
from aether_kube.conditions import condition_document, settle_conditions
from aether_kube.documents import JsonObject, integer_at, object_at, objects_at, text_at
from aether_kube.kinds import ACTOR_POOLS, DEPLOYMENTS, ROLE_BINDINGS
from aether_kube.kube_events import Involved, KubeEvent, KubeEventRecorder
from aether_kube.store import ObjectKey, resource_version_of
from aether_nats.connection import NatsConnection
from aether_nats.streams import StreamPlan, ensure_streams
from aether_operator.cluster.echoes import Echoes
from aether_operator.cluster.keyed_queue import KeyedQueue
from aether_operator.cluster.observe import Observer
from aether_operator.cluster.records import PoolRecord, key_of
from aether_operator.cluster.statuses import MANAGER
from aether_operator.manifests.pool import PoolIdentity, PoolObject, RuntimeDefaults, build_pool_objects, deployment_name, selector_text

logger = logging.getLogger(__name__)

LOOK_AGAIN_S: Final = 60.0
"""Seconds between looks at objects that are not watched: nobody deletes a ServiceAccount often, and three reads are cheap."""

STREAMS_AGAIN_S: Final = 10.0
"""Seconds until streams that could not be made are tried again; the pods try as well."""

COUNT_LATER_S: Final = 1.0
"""Seconds from a move of actors to the count in the pool's status, so that a mass move is one write a second."""

WORKERS: Final = 4
"""Pools that are kept at once: they are few."""

READY: Final = "Ready"
_OWNED: Final = (READY,)
_NOT_HEARD: Final = (
    "pods are ready, but the operator hears none of them over NATS, so they get no actors; pools must use the servers and the account of the operator: "
    "correct spec.nats.url, or leave it empty, and name in spec.nats.credentialsSecret credentials of that account that may send heartbeats"
)


@dataclass(frozen=True, slots=True)
class PoolState:
    """How a pool is: what its Deployment counts, its actors, what hinders it, why Kubernetes makes no more pods, and that none is heard."""

    replicas: int = 0
    ready_replicas: int = 0
    actors: int = 0
    problem: str = ""
    refusal: str = ""
    unheard: bool = False


class PoolKeeper:
    """Keeps the objects and the statuses of ActorPools."""

    def __init__(self, client: KubeClient, observer: Observer, connection: NatsConnection, recorder: KubeEventRecorder, defaults: RuntimeDefaults) -> None:
        """Make a keeper; `queue` is to be run."""
        self._client = client
        self._observer = observer
        self._connection = connection
        self._recorder = recorder
        self._echoes = Echoes()
        self._defaults = defaults
        self._seen_s: dict[str, float] = {}
        self._generations: dict[str, int] = {}
        self._streams: set[str] = set()
        self.queue: KeyedQueue[ObjectKey] = KeyedQueue("actorpool", self._check, workers=WORKERS)

    async def _check(self, key: ObjectKey) -> None:
        observer = self._observer
        record = observer.pools.get(key)
        if record is None or record.deleting:
            return
        problem = await self._keep(record) if record.spec is not None else ""
        deployment = observer.deployments.get(ObjectKey(key.namespace, deployment_name(key.name)))
        state = PoolState(
            replicas=deployment.replicas if deployment is not None else 0,
            ready_replicas=deployment.ready_replicas if deployment is not None else 0,
            actors=observer.count_actors(key),
            problem=problem,
            refusal=deployment.refusal if deployment is not None else "",
            unheard=observer.is_unheard(key),
        )
        await self._write(record, state)

    async def _keep(self, record: PoolRecord) -> str:
        """Apply what is missing or changed, and return what hinders the pool all the same."""
        if record.spec is None:
            return ""
        identity = PoolIdentity(record.key, record.uid)
        try:
            for item in build_pool_objects(identity, record.spec, self._defaults):
                await (self._keep_deployment(item) if item.kind is DEPLOYMENTS else self._keep_other(item, record))
        except KubeInvalid as exc:
            # The user's own pod template, most likely: the next change of it is tried again.
            return f"the API server does not take what the pool is made of; correct spec.podTemplate, spec.resources or spec.image: {exc}"
        except KubeForbidden as exc:
            # A right or somebody's admission policy: tried again with the next look at all pools.
            return f"the operator may not make what the pool is made of; give it the right, or keep to the policy that is named: {exc}"
        return await self._make_streams(record.key)

    async def _keep_deployment(self, item: PoolObject) -> None:
        desired = with_fingerprint(item.document)
        known = self._observer.deployments.get(key_of(item.document))
        if known is not None and self._is_untouched(item, desired, known.document):
            return
        # The cache may be behind our own write, so the last word has the API server.
        if item.path in self._generations and self._is_untouched(item, desired, await self._read(item)):
            return
        answer = await self._client.apply(item.path, desired, field_manager=MANAGER)
        self._generations[item.path] = integer_at(answer, "metadata", "generation")
        logger.info("a Deployment was applied", extra={logs.NAMESPACE: key_of(item.document).namespace, logs.NAME: key_of(item.document).name})

    def _is_untouched(self, item: PoolObject, desired: JsonObject, current: JsonObject) -> bool:
        return is_applied(desired, current) and integer_at(current, "metadata", "generation") == self._generations.get(item.path)

    async def _read(self, item: PoolObject) -> JsonObject:
        """Return an object as it is, empty when there is none."""
        try:
            return await self._client.get(item.path)
        except KubeNotFound:
            return {}

    async def _keep_other(self, item: PoolObject, record: PoolRecord) -> None:
        """Look at an object now and then, and apply it if it is not as it shall be."""
        looked = f"{item.path} for {record.uid}"
        if time.monotonic() - self._seen_s.get(looked, float("-inf")) < LOOK_AGAIN_S:
            return
        manager = f"{MANAGER}/{record.key.name}" if item.shared else MANAGER
        current = await self._read(item)
        if needs_apply(item.document, current):
            if item.kind is ROLE_BINDINGS and current and differs(item.document["roleRef"], current.get("roleRef")):
                # The role of a binding cannot be changed, only made anew.
                await self._client.delete(item.path, uid=text_at(current, "metadata", "uid"))
            await self._client.apply(item.path, item.document, field_manager=manager)
        self._seen_s[looked] = time.monotonic()

    async def _make_streams(self, key: ObjectKey) -> str:
        if key.namespace in self._streams:
            return ""
        try:
            await ensure_streams(self._connection, key.namespace, StreamPlan(self._defaults.event_partitions, self._defaults.event_replicas))
        except InternalError:
            raise
        except AetherError as exc:
            self.queue.add_later(key, STREAMS_AGAIN_S)
            return f"the streams of the namespace could not be made: {exc}"
        self._streams.add(key.namespace)
        return ""

    async def _write(self, record: PoolRecord, state: PoolState) -> None:
        desired = build_pool_status(record, state, now=datetime.now(UTC))
        if not differs(desired, record.status, owned_conditions=_OWNED) or self._echoes.is_awaited(record.key, desired, record.resource_version):
            return
        document = ACTOR_POOLS.document(record.key.namespace, record.key.name)
        object_at(document, "metadata")["uid"] = record.uid
        document["status"] = desired
        try:
            answer = await self._client.apply(ACTOR_POOLS.path(record.key.namespace, record.key.name, "status"), document, field_manager=MANAGER)
        except (KubeNotFound, KubeConflict):
            return
        self._echoes.note(record.key, desired, resource_version_of(answer))
        condition = judge_pool(record, state)
        if _reason_of(record.status) != condition.reason:
            involved = Involved(ACTOR_POOLS, record.key.namespace, record.key.name, record.uid)
            self._recorder.record(KubeEvent(involved, condition.reason, condition.message, "Keep", "Normal" if condition.status == "True" else "Warning"))


def needs_apply(desired: JsonObject, current: JsonObject) -> bool:
    """Return whether an object is missing, changed, or not yet owned by the pool that wants it; other owners do not matter."""
    metadata = {name: value for name, value in object_at(desired, "metadata").items() if name != "ownerReferences"}
    owners = {text_at(owner, "uid") for owner in objects_at(current, "metadata", "ownerReferences")}
    wanted = {text_at(owner, "uid") for owner in objects_at(desired, "metadata", "ownerReferences")}
    return not wanted <= owners or differs({**desired, "metadata": metadata}, current)


def judge_pool(record: PoolRecord, state: PoolState) -> Condition:
    """Return the condition Ready of a pool."""
    wanted = record.spec.replicas if record.spec is not None else 0
    if record.problems:
        return _condition(record, "False", "InvalidSpec", "\n".join(record.problems))
    if state.problem:
        return _condition(record, "False", "Hindered", state.problem)
    if wanted == 0:
        return _condition(record, "False", "ScaledToZero", "spec.replicas is 0, so no actor of this pool runs")
    if state.unheard:
        return _condition(record, "False", "NotHeard", _NOT_HEARD)
    if state.ready_replicas < wanted and state.refusal:
        return _condition(
            record,
            "False",
            "PodsRefused",
            f"{state.ready_replicas} of {wanted} pods are ready, and Kubernetes makes no more; mend what it names, or lower spec.replicas: {state.refusal}",
        )
    if state.ready_replicas < wanted:
        return _condition(record, "False", "PodsNotReady", f"{state.ready_replicas} of {wanted} pods are ready; kubectl get pods -l {selector_text(record.key.name)}")
    return _condition(record, "True", "PodsReady", "all pods are ready")


def build_pool_status(record: PoolRecord, state: PoolState, *, now: datetime) -> JsonObject:
    """Return the status that an ActorPool shall have."""
    known = [Condition.model_validate(item) for item in objects_at(record.status, "conditions")]
    return {
        "observedGeneration": record.generation,
        "replicas": state.replicas,
        "readyReplicas": state.ready_replicas,
        "actors": state.actors,
        "selector": selector_text(record.key.name),
        "conditions": [condition_document(condition) for condition in settle_conditions([judge_pool(record, state)], known, now=now)],
    }


def _condition(record: PoolRecord, status: str, reason: str, message: str) -> Condition:
    return Condition(type=READY, status="True" if status == "True" else "False", reason=reason, message=message, observed_generation=record.generation)


def _reason_of(status: JsonObject) -> str:
    return next((text_at(item, "reason") for item in objects_at(status, "conditions") if text_at(item, "type") == READY), "")
