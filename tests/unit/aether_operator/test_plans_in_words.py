"""Whole plans as people read them: what happens in the situations that matter most."""

from __future__ import annotations

from textwrap import dedent

from aether_operator.planning.pace import Limits
from aether_operator.planning.render import render_plan
from aether_operator.planning.rules import Rules
from aether_operator.planning.snapshot import PoolView, Snapshot
from tests.unit.aether_operator.snapshots import POOL, actor, planned, pod, snapshot

TWO_AT_ONCE = Limits(rebalance_per_s=2, mass_moves_per_s=1, hand_overs_at_once=2)


def words(before: Snapshot) -> str:
    return render_plan(planned(before)) + "\n"


def test_a_new_cluster() -> None:
    ssd = Rules(required=(("disk", "ssd"),))
    purged = [actor("erin", purges=True), actor("frank", purges=True, held_by_us=True)]
    actors = [actor("alice"), actor("bob", rules=ssd), actor("carol", suspend=True), actor("dave", model="none"), *purged]

    assert words(snapshot(actors, [pod("a"), pod("b", introduced=False)])) == dedent("""\
        shop/alice: nowhere to pod-a (Scheduled)
        shop/frank: nowhere to pod-b (Scheduled)
        shop/bob: waits (NoMatchingPods)
        shop/carol: waits (Suspended)
        shop/dave: waits (ModelNotFound)
        pod pod-b: is told of 0 actors
        shop/erin: finalizer on
        """)


def test_a_pod_is_lost_while_another_leaves() -> None:
    actors = [actor("alice", on="gone"), actor("bob", on="gone"), *(actor(f"actor-{i}", on="a") for i in range(3)), actor("zoe", on="b")]

    assert words(snapshot(actors, [pod("a", "leaving"), pod("b", deletion_cost=9), pod("c")], limits=TWO_AT_ONCE)) == dedent("""\
        shop/actor-0: pod-a to pod-c (Moving)
        shop/actor-1: pod-a to pod-b (Moving)
        shop/alice: pod-gone to pod-c (PodLost)
        shop/bob: pod-gone to pod-b (PodLost)
        """)


def test_a_pod_joins() -> None:
    actors = [actor(f"actor-{i}", on="a") for i in range(6)]

    assert words(snapshot(actors, [pod("a"), pod("b")], limits=TWO_AT_ONCE)) == dedent("""\
        shop/actor-4: pod-a to pod-b (Rebalanced)
        shop/actor-5: pod-a to pod-b (Rebalanced)
        pod pod-a: deletion cost 0 to 4
        pod pod-b: deletion cost 0 to 2
        """)


def test_a_rollout_begins() -> None:
    actors = [actor(f"actor-{i}", on="abc"[i % 3]) for i in range(6)]
    pods = [pod("a", "leaving", revision="1"), pod("b", revision="1"), pod("c", revision="1"), pod("n", revision="2")]

    assert words(snapshot(actors, pods, pools={POOL: PoolView(100, "2")})) == dedent("""\
        shop/actor-0: pod-a to pod-n (Moving)
        shop/actor-3: pod-a to pod-n (Moving)
        """)


def test_several_pods_are_lost() -> None:
    actors = [actor(f"actor-{i}", on="xy"[i % 2]) for i in range(4)]

    assert words(snapshot(actors, [pod("a")], limits=TWO_AT_ONCE)) == dedent("""\
        shop/actor-0: pod-x to pod-a (PodLost)
        shop/actor-1: pod-y to pod-a (PodLost)
        more after 0.2 s
        """)


def test_a_long_plan_is_cut() -> None:
    plan = planned(snapshot([actor(f"actor-{i}") for i in range(5)], [pod("a")]))

    assert render_plan(plan, lines_max=2).splitlines()[-1] == "... and 3 more"
