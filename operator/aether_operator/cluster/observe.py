"""Sees the cluster: keeps the informers, and makes of them and of the heartbeats one snapshot for the planner.

Changes that the planner does not care about (versions, phases that pods report) wake nobody, so traffic costs no planning; nor do those
that only show what it decided itself.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Generic, TypeVar

from aether_api.control import AssignmentItem
from aether_api.errors import InternalError
from aether_api.identity import BootId, Epoch, PodUid
from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject
from aether_kube.informer import Informer, InformerHealth, Selection
from aether_kube.kinds import ACTOR_MODELS, ACTOR_POOLS, ACTORS, DEPLOYMENTS, PODS, REPLICA_SETS, ResourceKind
from aether_kube.store import Change, ObjectKey
from aether_operator.cluster.detector import Suspect
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.cluster.overlay import Overlay
from aether_operator.cluster.records import (
    DeploymentRecord,
    ModelRecord,
    PodRecord,
    PoolRecord,
    RevisionRecord,
    parse_actor,
    parse_deployment,
    parse_model,
    parse_pod,
    parse_pool,
    parse_replica_set,
)
from aether_operator.cluster.scopes import EVERYWHERE, Scope, Scopes
from aether_operator.manifests.pool import POOL_LABEL
from aether_operator.planning.claims import Claim, place_as_claimed, raise_floors
from aether_operator.planning.damping import is_damped
from aether_operator.planning.liveness import Evidence, Links, Windows, is_departing, is_silent, judge_pod
from aether_operator.planning.pace import Limits, Pace
from aether_operator.planning.relevance import matters
from aether_operator.planning.snapshot import ActorView, ModelView, PodView, PoolView, Snapshot, Verdict

T = TypeVar("T")

FORGET_EVERY_S: Final = 30.0
"""Seconds between looks for pods that are gone and forgotten."""


@dataclass(slots=True)
class Memory:
    """What a leader knows from its own doings; lost with its term, and found again by asking.

    Attributes:
        overlay: what was decided and does not show yet.
        epoch_floors: the highest epochs that pods answered with.
        introduced: the process of each pod that was told all that it holds.
        surveyed: the process of each pod that was asked what it holds.
        claims: what pods said that they hold, where no status told as much.
        vanished: Actors that were deleted while placed, and whose pods were not told.
        purge_problems: why purges under way failed last, or the finalizers for them could not be put on.
        paces: what the pools have spent of their budgets.
        under_way: hand-overs that are not over yet, by the pod that gives.
    """

    overlay: Overlay = field(default_factory=Overlay)
    epoch_floors: dict[ObjectKey, Epoch] = field(default_factory=dict[ObjectKey, Epoch])
    introduced: dict[PodUid, BootId] = field(default_factory=dict[PodUid, BootId])
    surveyed: dict[PodUid, BootId] = field(default_factory=dict[PodUid, BootId])
    claims: dict[ObjectKey, Claim] = field(default_factory=dict[ObjectKey, Claim])
    vanished: dict[ObjectKey, ActorView] = field(default_factory=dict[ObjectKey, ActorView])
    purge_problems: dict[ObjectKey, str] = field(default_factory=dict[ObjectKey, str])
    paces: Mapping[ObjectKey, Pace] = field(default_factory=dict[ObjectKey, Pace])
    under_way: Counter[PodUid] = field(default_factory=Counter[PodUid])


@dataclass(frozen=True, slots=True)
class Motion:
    """What settings say of moves: how fast they go, and whether pods are told what their deletion costs."""

    limits: Limits
    writes_costs: bool


@dataclass(frozen=True, slots=True)
class Listeners:
    """Who is told of changes; all are quick and do not raise. `pool_later` is for what may wait a while and comes in crowds."""

    plan: Callable[[], None] = lambda: None
    model: Callable[[ObjectKey], None] = lambda _: None
    pool: Callable[[ObjectKey], None] = lambda _: None
    pool_later: Callable[[ObjectKey], None] = lambda _: None


class Collection(Generic[T]):
    """One kind of object over all watched namespaces of which everything was listed."""

    def __init__(self, informers: Mapping[Scope, Informer[T]], is_listed: Callable[[Scope], bool]) -> None:
        """Join the informers of the namespaces, or the one of all of them."""
        self._informers = informers
        self._is_listed = is_listed

    def __iter__(self) -> Iterator[T]:
        """Iterate over all objects."""
        for scope, informer in self._informers.items():
            if self._is_listed(scope):
                yield from informer.store.values()

    def get(self, key: ObjectKey) -> T | None:
        """Return one object."""
        scope = EVERYWHERE if EVERYWHERE in self._informers else key.namespace
        informer = self._informers.get(scope)
        return informer.store.get(key) if informer is not None and self._is_listed(scope) else None


class Observer:
    """The informers of one operator, and what is heard of pods. It watches all the time; `begin` and `end` frame a term of leadership."""

    def __init__(self, client: KubeClient, scopes: tuple[str | None, ...], heartbeats: Heartbeats, windows: Windows, *, motion: Motion) -> None:
        """Make the informers; `run` starts them.

        Args:
            scopes: namespaces to watch, or None alone for all.
        """
        self._client = client
        self._scopes = Scopes(scopes)
        self._scopes.on_listed = self._on_listed
        self._heartbeats = heartbeats
        self._windows = windows
        self._motion = motion
        self._memory = Memory()
        self._leads = False
        self.actors = self._collect(ACTORS, parse_actor, self._on_actor)
        self.pods = self._collect(PODS, parse_pod, self._on_pod, POOL_LABEL)
        self.models = self._collect(ACTOR_MODELS, parse_model, self._on_model)
        self.pools = self._collect(ACTOR_POOLS, parse_pool, self._on_pool)
        self.deployments = self._collect(DEPLOYMENTS, parse_deployment, self._on_deployment, POOL_LABEL)
        self.revisions = self._collect(REPLICA_SETS, parse_replica_set, self._on_revision, POOL_LABEL)
        self._listeners = Listeners()
        self.nats_since_s: Callable[[], float | None] = lambda: None
        self.awake_since_s: Callable[[], float] = lambda: 0.0

    async def run(self) -> None:
        """Keep the informers until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            for kind, informer in self._scopes.informers():
                tasks.create_task(informer.run(), name=f"informer of {kind.plural}")
            tasks.create_task(self._forget_pods(), name="forgetting of pods")

    def begin(self, memory: Memory, listeners: Listeners) -> None:
        """Begin a term: lay its memory over the caches, and tell its listeners of changes."""
        self._memory, self._listeners, self._leads = memory, listeners, True

    def end(self) -> None:
        """End a term."""
        self._memory, self._listeners, self._leads = Memory(), Listeners(), False

    async def wait_synced(self) -> None:
        """Wait until every collection was listed once, but those of namespaces that refuse us while others do not."""
        await self._scopes.wait_listed()

    def health(self) -> Mapping[str, list[InformerHealth]]:
        """Return how the informers are, by kind."""
        found: dict[str, list[InformerHealth]] = {}
        for kind, informer in self._scopes.informers():
            found.setdefault(kind.plural, []).append(informer.health())
        return found

    def links(self) -> Links:
        """Return since when our own links are up: NATS, and the watches of Actors and Pods, where the namespace does not refuse us."""
        return Links(self.nats_since_s(), self._scopes.healthy_since_s(ACTORS, PODS), self.awake_since_s())

    def _links_to(self, pod: PodRecord, links: Links) -> Links:
        """Return our links as they count for one pod: nothing is known of those in a namespace that refuses us."""
        return replace(links, kube_since_s=None) if self._scopes.is_lost(pod.key.namespace) else links

    def verdicts(self) -> Mapping[PodUid, Verdict]:
        """Return the verdicts on all pods now."""
        links, now_s = self.links(), time.monotonic()
        evidence = {pod.uid: Evidence(pod.facts, self._heartbeats.see(pod.uid).pulse, self._links_to(pod, links)) for pod in self.pods}
        return {uid: judge_pod(known, now_s=now_s, windows=self._windows) for uid, known in evidence.items()}

    def is_settled(self) -> bool:
        """Return whether our own links were up for a full window."""
        return self.links().are_settled(time.monotonic(), self._windows)

    def name_of(self, uid: PodUid) -> str:
        """Return a pod's name, for people."""
        pod = self._find_pod(uid)
        return uid if pod is None else f"{pod.key.namespace}/{pod.key.name}"

    def is_departing(self, uid: PodUid) -> bool:
        """Return whether a pod is known to go, or has no object any more."""
        pod = self._find_pod(uid)
        return pod is None or is_departing(pod.facts, self._heartbeats.see(uid).pulse)

    def _find_pod(self, uid: PodUid) -> PodRecord | None:
        return next((pod for pod in self.pods if pod.uid == uid), None)

    def find_silent(self) -> list[Suspect]:
        """Return the pods that should have been heard by now."""
        links, now_s = self.links(), time.monotonic()
        silent = [pod for pod in self.pods if is_silent(self._heartbeats.see(pod.uid).pulse, self._links_to(pod, links), now_s=now_s, windows=self._windows)]
        return [Suspect(pod.key.namespace, pod.uid) for pod in silent]

    def snapshot(self, now_ms: int) -> Snapshot:
        """Return the cluster as it is known now, with all decisions laid over it."""
        pods = {pod.uid: pod for pod in self.view_pods()}
        actors = {actor.key: self._locate(actor, pods) for actor in self.actors}
        self._tidy(actors, pods)
        newest = find_newest(self.revisions)
        return Snapshot(
            now_ms=now_ms,
            actors=actors,
            pods=pods,
            pools={pool.key: PoolView(pool.spec.actors_per_pod, newest.get(pool.key, "")) for pool in self.pools if pool.spec is not None and not pool.deleting},
            models={model.key: ModelView(not model.problems) for model in self.models},
            settled=self.is_settled(),
            epoch_floors=raise_floors(self._memory.epoch_floors, self._memory.claims),
            vanished=tuple(self._memory.vanished.values()),
            purge_problems=dict(self._memory.purge_problems),
            now_s=time.monotonic(),
            limits=self._motion.limits,
            writes_costs=self._motion.writes_costs,
            paces=dict(self._memory.paces),
            under_way=dict(self._memory.under_way),
        )

    def count_actors(self, pool: ObjectKey) -> int:
        """Return how many Actors are placed on the pool's pods, as the API server knows it."""
        uids = {pod.uid for pod in self._pods_of(pool)}
        return sum(1 for actor in self.actors if actor.home is not None and actor.home.pod_uid in uids)

    def is_unheard(self, pool: ObjectKey) -> bool:
        """Return whether a pool has ready pods of which none was ever heard, though all should have been by now."""
        links, now_s = self.links(), time.monotonic()
        pulses = [(self._heartbeats.see(pod.uid).pulse, self._links_to(pod, links)) for pod in self._pods_of(pool) if pod.ready]
        return bool(pulses) and all(pulse.heard_s is None and is_silent(pulse, known, now_s=now_s, windows=self._windows) for pulse, known in pulses)

    def is_out_of_reach(self, pool: ObjectKey, nats_url: str) -> bool:
        """Return whether a pool may use another NATS than ours: its ready pods are not heard, or it names other servers and no pod shows that they are ours."""
        record = self.pools.get(pool)
        url = record.spec.nats.url if record is not None and record.spec is not None else ""
        is_shown = any(self._heartbeats.see(pod.uid).pulse.heard_s is not None for pod in self._pods_of(pool))
        return self.is_unheard(pool) or (url not in ("", nats_url) and not is_shown)

    def _pods_of(self, pool: ObjectKey) -> list[PodRecord]:
        return [pod for pod in self.pods if pod.key.namespace == pool.namespace and pod.pool == pool.name]

    def view_pods(self) -> list[PodView]:
        """Return all pods as they are judged now."""
        verdicts = self.verdicts()
        return [self._view_pod(pod, verdicts[pod.uid]) for pod in self.pods]

    def _view_pod(self, pod: PodRecord, verdict: Verdict) -> PodView:
        process = self._heartbeats.see(pod.uid)
        # Who was not asked yet waits to be introduced until it has answered.
        introduced = self._memory.introduced.get(pod.uid) == process.boot_id or self._memory.surveyed.get(pod.uid) != process.boot_id
        return PodView(
            uid=pod.uid,
            namespace=pod.key.namespace,
            name=pod.key.name,
            pool=pod.pool,
            boot_id=process.boot_id,
            verdict=verdict,
            ready=pod.ready,
            introduced=introduced,
            labels=pod.labels,
            cordon=pod.cordon,
            revision=pod.revision,
            damped=is_damped(process.flaps, time.monotonic()),
            deletion_cost=pod.deletion_cost,
        )

    def find_current(self, pod: PodView, items: Sequence[AssignmentItem]) -> list[AssignmentItem]:
        """Return the changes that still stand: releases, and adoptions of Actors that exist and are placed there at that epoch."""
        claimants = self._find_claimants(ObjectKey(pod.namespace, item.name) for item in items)
        return [item for item in items if item.action == "release" or self._holds(pod, item, claimants)]

    def _holds(self, pod: PodView, item: AssignmentItem, claimants: Mapping[PodUid, PodView]) -> bool:
        actor = self.actors.get(ObjectKey(pod.namespace, item.name))
        home = self._locate(actor, claimants).home if actor is not None and actor.uid == item.uid else None
        return home is not None and (home.pod_uid, home.epoch) == (pod.uid, item.epoch)

    def _find_claimants(self, keys: Iterable[ObjectKey]) -> Mapping[PodUid, PodView]:
        """Return the pods by which claims on these Actors are judged; none if there is no claim."""
        return {pod.uid: pod for pod in self.view_pods()} if any(key in self._memory.claims for key in keys) else {}

    def _locate(self, actor: ActorView, pods: Mapping[PodUid, PodView]) -> ActorView:
        """Return an Actor as it was decided, or as a pod holds it if no status tells yet."""
        return place_as_claimed(self._memory.overlay.apply(actor), self._memory.claims.get(actor.key), pods)

    async def _forget_pods(self) -> None:
        while True:
            await asyncio.sleep(FORGET_EVERY_S)
            self._heartbeats.forget_others({pod.uid for pod in self.pods})

    def _tidy(self, actors: Mapping[ObjectKey, ActorView], pods: Mapping[PodUid, PodView]) -> None:
        """Forget what no longer matters."""
        memory = self._memory
        floors = memory.epoch_floors.items()
        memory.epoch_floors = {key: floor for key, floor in floors if key in actors and floor > _epoch(actors[key])}
        memory.introduced = {uid: boot_id for uid, boot_id in memory.introduced.items() if uid in pods}
        memory.surveyed = {uid: boot_id for uid, boot_id in memory.surveyed.items() if uid in pods}
        memory.claims = {key: claim for key, claim in memory.claims.items() if key not in actors or claim.epoch >= _epoch(actors[key])}
        memory.purge_problems = {key: problem for key, problem in memory.purge_problems.items() if key in actors}

    def _collect(self, kind: ResourceKind, parse: Callable[[JsonObject], T], on_change: Callable[[Change[T]], None], label_selector: str = "") -> Collection[T]:
        selections = {scope: Selection(kind, scope, label_selector=label_selector) for scope in self._scopes}
        informers = {scope: Informer(self._client, selection, parse=parse, on_change=on_change) for scope, selection in selections.items()}
        for scope, informer in informers.items():
            self._scopes.add(scope, kind, informer)
        return Collection(informers, self._scopes.is_listed)

    def _on_listed(self) -> None:
        """Tell of what is shown only now."""
        self._listeners.plan()
        for model in self.models:
            self._listeners.model(model.key)
        for pool in self.pools:
            self._listeners.pool(pool.key)

    def _on_actor(self, change: Change[ActorView]) -> None:
        if change.new is None:
            self._note_vanished(change)
        if change.old is not None and change.new is not None and not matters(change.old, change.new):
            return
        if change.old is None or change.new is None or not self._memory.overlay.expects(change.old, change.new):
            self._listeners.plan()
        for actor in (change.old, change.new):
            if actor is not None and actor.home is not None:
                self._listeners.pool_later(actor.pool_key)

    def _note_vanished(self, change: Change[ActorView]) -> None:
        if change.old is None:
            raise InternalError(f"a deletion of {change.key} without the Actor")
        if not self._leads:
            return
        last = self._locate(change.old, self._find_claimants([change.key]))
        self._memory.overlay.drop(change.key)
        self._memory.claims.pop(change.key, None)
        if last.home is not None:
            self._memory.vanished[change.key] = last

    def _on_pod(self, change: Change[PodRecord]) -> None:
        pod = change.new or change.old
        if pod is not None:
            self._listeners.pool(ObjectKey(pod.key.namespace, pod.pool))
        if change.old != change.new:
            self._listeners.plan()

    def _on_model(self, change: Change[ModelRecord]) -> None:
        self._listeners.model(change.key)
        if _accepted(change.old) != _accepted(change.new):
            self._listeners.plan()

    def _on_pool(self, change: Change[PoolRecord]) -> None:
        self._listeners.pool(change.key)
        self._listeners.plan()

    def _on_revision(self, change: Change[RevisionRecord]) -> None:
        if change.old != change.new:
            self._listeners.plan()

    def _on_deployment(self, change: Change[DeploymentRecord]) -> None:
        deployment = change.new or change.old
        if deployment is not None:
            self._listeners.pool(ObjectKey(deployment.key.namespace, deployment.pool))


def find_newest(revisions: Iterable[RevisionRecord]) -> Mapping[ObjectKey, str]:
    """Return the hash of the newest pod template of each pool."""
    newest: dict[ObjectKey, RevisionRecord] = {}
    for record in revisions:
        pool = ObjectKey(record.key.namespace, record.pool)
        if pool not in newest or record.number > newest[pool].number:
            newest[pool] = record
    return {pool: record.revision for pool, record in newest.items()}


def _accepted(record: ModelRecord | None) -> bool | None:
    return None if record is None else not record.problems


def _epoch(actor: ActorView) -> int:
    return actor.placement.epoch if actor.placement is not None else 0
