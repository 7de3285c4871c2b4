"""The part of the checker that looks at how many actors move at once, and at moves for the sake of balance."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence

from aether_api.identity import PodUid
from aether_kube.store import ObjectKey
from aether_operator.planning.pace import NO_PACE, hand_over_limit, loss_tokens, move_tokens
from aether_operator.planning.plan import PlacementChange
from aether_operator.planning.snapshot import ActorView, Snapshot
from aether_operator.planning.standing import find_rivals, find_stop


def find_pace_problems(snapshot: Snapshot, changes: Sequence[PlacementChange], before: Mapping[PodUid, int], after: Mapping[PodUid, int]) -> Iterator[str]:
    """Yield what moves too fast or without need.

    Args:
        before: how many actors each pod holds before the plan.
        after: how many it holds when the plan is carried out.
    """
    yield from _check_hand_overs(snapshot, changes, before)
    yield from _check_losses(snapshot, changes)
    yield from _check_rebalancing(snapshot, [change for change in changes if change.cause == "Rebalanced"], after)


def _check_hand_overs(snapshot: Snapshot, changes: Sequence[PlacementChange], before: Mapping[PodUid, int]) -> Iterator[str]:
    """A pod that lives gives away only as many actors at once as can be served one by one."""
    moves = Counter(change.old.pod_uid for change in changes if change.old is not None and change.new.pod_uid not in ("", change.old.pod_uid))
    for uid, count in moves.items():
        pod = snapshot.pods.get(uid)
        limit = hand_over_limit(snapshot.limits, before[uid])
        if pod is not None and pod.verdict != "dead" and count > max(0, limit - snapshot.under_way.get(uid, 0)):
            yield f"pod {pod.name} would hand over {count} actors at once beside those under way, more than {limit}"


def _check_losses(snapshot: Snapshot, changes: Sequence[PlacementChange]) -> Iterator[str]:
    """Of several lost pods of a pool, only as many actors move as the rate allows."""
    if not any(_is_lost(snapshot, change.actor) for change in changes):
        return
    rivals = find_rivals(snapshot.actors.values())
    lost_pods: dict[ObjectKey, set[str]] = defaultdict(set)
    for actor in snapshot.actors.values():
        if actor.home is not None and _is_lost(snapshot, actor) and find_stop(actor, rivals) is None:
            lost_pods[actor.pool_key].add(actor.home.pod_uid)
    moved = Counter(change.actor.pool_key for change in changes if _is_lost(snapshot, change.actor) and find_stop(change.actor, rivals) is None)
    for pool, count in moved.items():
        tokens = loss_tokens(snapshot.limits, snapshot.paces.get(pool, NO_PACE), snapshot.now_s)
        if len(lost_pods[pool]) > 1 and count > tokens:
            yield f"{count} actors of {len(lost_pods[pool])} lost pods of pool {pool} would move at once, more than {tokens:.0f}"


def _is_lost(snapshot: Snapshot, actor: ActorView) -> bool:
    if actor.placement is None or not actor.placement.pod_uid:
        return False
    pod = snapshot.pods.get(actor.placement.pod_uid)
    return pod is None or pod.verdict == "dead"


def _check_rebalancing(snapshot: Snapshot, moves: Sequence[PlacementChange], after: Mapping[PodUid, int]) -> Iterator[str]:
    """Rebalancing is slow, rests while pods come and go, and makes loads more even."""
    by_pool: dict[ObjectKey, list[PlacementChange]] = defaultdict(list)
    for change in moves:
        by_pool[change.actor.pool_key].append(change)
    for pool, changes in by_pool.items():
        tokens = move_tokens(snapshot.limits, snapshot.paces.get(pool, NO_PACE), snapshot.now_s)
        if len(changes) > tokens:
            yield f"{len(changes)} actors of pool {pool} would be rebalanced at once, more than {tokens:.0f}"
        if not snapshot.settled or any(pod.pool_key == pool and pod.verdict in ("leaving", "suspect") for pod in snapshot.pods.values()):
            yield f"pool {pool} is rebalanced while pods leave or our links are not settled"
        if _rise_of_squares(changes, after) >= 0:
            yield f"rebalancing pool {pool} would not make its loads more even"


def _rise_of_squares(changes: Sequence[PlacementChange], after: Mapping[PodUid, int]) -> int:
    """Return by how much the moves raise the sum of squares of the loads; evening them out lowers it."""
    gained: Counter[PodUid] = Counter()
    for change in changes:
        gained[change.new.pod_uid] += 1
        if change.old is not None:
            gained[change.old.pod_uid] -= 1
    return sum(after[uid] ** 2 - (after[uid] - gain) ** 2 for uid, gain in gained.items())
