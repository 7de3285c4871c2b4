"""The bench of the operator's planner: ten thousand actors on twenty pods, against the time that a plan may take.

A plan is made and checked on every change, so its time bounds how soon anybody hears of a lost pod. It is CPU time of this
process, since planning waits for nothing: on a quiet machine both are the same, on a busy one this one still means something.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping
from dataclasses import replace
from typing import Final

from aether_api.identity import ActorId, BootId, ModelName, Namespace, PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.checker import check_plan
from aether_operator.planning.planner import make_plan
from aether_operator.planning.snapshot import ActorView, ModelView, PodView, PoolView, Snapshot
from aether_operator.planning.statuses import with_status
from bench.errors import BenchFailed
from bench.results import Comparison, Line, Sample, build_limit_line
from bench.rounds import Measure, interleave
from bench.scale import Scale

ACTORS: Final = 10_000
PODS: Final = 20
LIMIT_MS: Final = 200.0
"""Milliseconds for one plan and its check: a tenth of a second or two is what a fail-over may spend on deciding."""

NOW_MS: Final = 1_700_000_000_000
"""Any moment."""


async def run_planning(scale: Scale) -> AsyncGenerator[Line, None]:
    """Plan for a new cluster, for one at rest, and for one that lost a pod."""
    new = build_cluster(scale.of(ACTORS, at_least=PODS), PODS)
    rest = carry_out(new)
    lost = replace(rest, pods=dict(list(rest.pods.items())[1:]))
    clusters = {"all actors are new": (new, len(new.actors)), "nothing to do": (rest, 0), "a pod is lost": (lost, len(new.actors) // PODS)}
    samples = await interleave(scale.rounds, {name: _measure(cluster, changes) for name, (cluster, changes) in clusters.items()})
    for name in clusters:
        yield build_limit_line(Comparison("planning", "ms", f"limit, {name}", 1.0, at_most=True), samples[name], LIMIT_MS)


def build_cluster(actors: int, pods: int) -> Snapshot:
    """Return a cluster in which nobody is placed yet."""
    pool = ObjectKey("bench", "default")
    views = [_build_actor(f"actor-{number}") for number in range(actors)]
    pod_views = [PodView(PodUid(f"uid-{number}"), "bench", f"pod-{number}", pool.name, BootId("boot")) for number in range(pods)]
    return Snapshot(
        now_ms=NOW_MS,
        actors={actor.key: actor for actor in views},
        pods={pod.uid: pod for pod in pod_views},
        pools={pool: PoolView(actors)},
        models={ObjectKey("bench", "account"): ModelView(accepted=True)},
    )


def carry_out(snapshot: Snapshot) -> Snapshot:
    """Return the cluster once its plan was carried out."""
    actors: Mapping[ObjectKey, ActorView] = {change.actor.key: with_status(change.actor, change.status) for change in make_plan(snapshot).changes}
    return replace(snapshot, now_ms=snapshot.now_ms + 1000, actors=actors)


def _build_actor(name: str) -> ActorView:
    identity = ActorId(Namespace("bench"), ModelName("account"), name)
    return ActorView(ObjectKey("bench", name), f"uid-{name}", 1, "2026-01-01T00:00:00Z", identity=identity, model="account")


def _measure(snapshot: Snapshot, changes: int) -> Measure:
    async def measure() -> Sample:
        begun_s = time.process_time()
        plan = make_plan(snapshot)
        check_plan(snapshot, plan)
        taken_s = time.process_time() - begun_s
        if len(plan.changes) != changes:
            raise BenchFailed(f"the plan changes {len(plan.changes)} placements instead of {changes}")
        return Sample(taken_s * 1000)

    return measure
