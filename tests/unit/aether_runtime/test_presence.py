"""Which pods are live, and which of them an actor without a resource belongs to."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from aether_api.control import Heartbeat, PodState
from aether_api.identity import ActorId, PodUid, parse_actor_id
from aether_runtime.presence import LIVE_S, LivePods, choose_pod

pods = st.lists(st.uuids().map(lambda uid: PodUid(str(uid))), min_size=1, max_size=8, unique=True)
actors = st.from_regex(r"[a-z0-9]{1,12}", fullmatch=True).map(lambda id: parse_actor_id("default", "account", id))


def build_heartbeat(uid: str, state: PodState = "ready") -> Heartbeat:
    return Heartbeat(uid, "boot", "pod", state, 0)


@given(pods, actors)
def test_every_pod_names_the_same_one_whatever_the_order(uids: list[PodUid], actor: ActorId) -> None:
    assert choose_pod(actor, uids) == choose_pod(actor, reversed(uids))
    assert choose_pod(actor, uids) in uids


@given(pods, actors)
def test_a_pod_that_goes_moves_only_its_own_actors(uids: list[PodUid], actor: ActorId) -> None:
    chosen = choose_pod(actor, uids)
    for gone in uids:
        rest = [uid for uid in uids if uid != gone]
        if gone != chosen:
            assert choose_pod(actor, rest) == chosen


@given(pods, actors, st.uuids())
def test_a_pod_that_comes_takes_actors_only_to_itself(uids: list[PodUid], actor: ActorId, new: object) -> None:
    assert choose_pod(actor, [*uids, PodUid(str(new))]) in (choose_pod(actor, uids), str(new))


def test_without_pods_nobody_is_named() -> None:
    assert choose_pod(parse_actor_id("default", "account", "alice"), []) is None


def test_actors_spread_evenly() -> None:
    uids = [PodUid(f"pod-{number}") for number in range(4)]
    counts = Counter(choose_pod(parse_actor_id("default", "account", f"a{number}"), uids) for number in range(4000))
    assert all(900 < counts[uid] < 1100 for uid in uids)


def test_a_pod_is_live_for_a_second_after_its_last_heartbeat() -> None:
    now = [0.0]
    live = LivePods(lambda: now[0])
    live.take(build_heartbeat("b"))
    now[0] = 0.5
    live.take(build_heartbeat("a"))
    assert live.live() == ["a", "b"]
    now[0] = LIVE_S + 0.2
    assert live.live() == ["a"]
    now[0] = 5.0
    assert live.live() == []


def test_a_pod_that_leaves_is_out_at_once() -> None:
    live = LivePods(lambda: 0.0)
    live.take(build_heartbeat("a"))
    live.take(build_heartbeat("a", "leaving"))
    assert live.live() == []


def test_it_is_known_for_how_long_no_pod_has_come_or_gone() -> None:
    now = [0.0]
    live = LivePods(lambda: now[0])
    for now[0], uid in ((5.0, "a"), (5.5, "a"), (6.0, "b")):
        live.take(build_heartbeat(uid))
    assert live.settled_s == 0
    for now[0] in (6.4, 6.8, 7.05):
        live.take(build_heartbeat("a"))
        live.live()
    now[0] = 7.1
    assert round(live.settled_s, 2) == 0.05, "b was silent for a second at 7.05"
    now[0] = 7.5
    live.take(build_heartbeat("a", "leaving"))
    assert live.settled_s == 0
