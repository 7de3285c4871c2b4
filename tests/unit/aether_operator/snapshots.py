"""Clusters for tests of the planner: short ways to say what is there, and what is after a plan was carried out."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from aether_api.identity import ActorId, BootId, Epoch, ModelName, Namespace, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.plan import PlacementChange, Plan
from aether_operator.planning.planner import make_plan
from aether_operator.planning.snapshot import ActorView, KnownCondition, ModelView, Placed, PodView, PoolView, Snapshot, Verdict
from aether_operator.planning.statuses import DesiredStatus, with_status

NOW_MS = 1_000_000
MODEL = ObjectKey("shop", "account")
POOL = ObjectKey("shop", "default")


def actor(name: str, *, on: str = "", epoch: int = 5, created: str = "2026-01-01T00:00:00Z", id: str = "", **changes: object) -> ActorView:
    """Make an Actor; `on` names the pod that holds it."""
    placement = Placed(f"pod-{on}", PodUid(on), Epoch(epoch)) if on else None
    conditions = (KnownCondition("Scheduled", "True", "Scheduled", "", 1, ""),) if on else ()
    identity = ActorId(Namespace("shop"), ModelName("account"), id or name)
    made = ActorView(key=ObjectKey("shop", name), uid=f"uid-{name}", generation=1, created=created, identity=identity, model="account", placement=placement, conditions=conditions)
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of ActorView only


def pod(uid: str, verdict: Verdict = "alive", **changes: object) -> PodView:
    made = PodView(uid=PodUid(uid), namespace="shop", name=f"pod-{uid}", pool="default", boot_id=BootId("boot"), verdict=verdict)
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of PodView only


def snapshot(actors: list[ActorView], pods: list[PodView], *, capacity: int = 100, **changes: object) -> Snapshot:
    made = Snapshot(
        now_ms=NOW_MS,
        actors={item.key: item for item in actors},
        pods={item.uid: item for item in pods},
        pools={POOL: PoolView(capacity)},
        models={MODEL: ModelView(accepted=True)},
    )
    return replace(made, **changes)  # type: ignore[arg-type]  # the tests name fields of Snapshot only


def planned(before: Snapshot) -> Plan:
    plan = make_plan(before)
    check_plan(before, plan)
    return plan


def statuses_of(plan: Plan) -> list[tuple[ActorView, DesiredStatus]]:
    return [(change.actor, change.status) for change in plan.changes] + [(change.actor, change.status) for change in plan.statuses]


def executed(before: Snapshot, plan: Plan) -> Snapshot:
    """Return the snapshot as it is when everything in the plan was done."""
    after = dict(before.actors)
    for actor_, status in statuses_of(plan):
        after[actor_.key] = with_status(actor_, status)
    for finalizer in plan.finalizers:
        after[finalizer.actor.key] = replace(after[finalizer.actor.key], held_by_us=finalizer.wanted)
    for purge in plan.purges:
        del after[purge.actor.key]
    costs = {change.pod.uid: change.cost for change in plan.costs}
    pods = {uid: replace(item, introduced=item.introduced or item.hears, deletion_cost=costs.get(uid, item.deletion_cost)) for uid, item in before.pods.items()}
    return replace(before, now_ms=before.now_ms + 1000, now_s=before.now_s + 1, actors=after, pods=pods, vanished=(), paces=plan.paces)


def condition_of(plan: Plan, name: str, type_: str = "Scheduled") -> tuple[str, str, str]:
    status = next(status for item, status in statuses_of(plan) if item.key.name == name)
    return next((item.status, item.reason, item.message) for item in status.conditions if item.type == type_)


def settled(before: Snapshot, *, plans_max: int = 400) -> tuple[Snapshot, list[PlacementChange]]:
    """Plan and carry out until nothing is left to do, and return all changes of placements on the way."""
    changes: list[PlacementChange] = []
    for _ in range(plans_max):
        plan = planned(before)
        changes += plan.changes
        before = executed(before, plan)
        if plan.is_empty and plan.again_after_s is None:
            return before, changes
    raise AssertionError(f"still not at rest after {plans_max} plans")


def loads_of(cluster: Snapshot) -> dict[str, int]:
    """Return how many actors each pod holds."""
    held = Counter(item.placement.pod_uid for item in cluster.actors.values() if item.placement is not None)
    return {uid: held[uid] for uid in cluster.pods}
