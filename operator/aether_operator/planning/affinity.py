"""Decides which pods suit an actor, as its `spec.placement` says: labels that a pod must carry, labels that it had better carry,
and other actors that it shall be kept apart from.

What is placed already stays when other pods begin to suit it better. Only an actor whose pod lacks a required label is moved, as
soon as one that carries it has room.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping

from aether_api.identity import PodUid
from aether_operator.planning.rules import Labels, Rules, Spread
from aether_operator.planning.snapshot import ActorView, PodView


def fits(rules: Rules, pod: PodView) -> bool:
    """Return whether a pod carries all required labels."""
    return carries(pod, rules.required)


def carries(pod: PodView, labels: Labels) -> bool:
    """Return whether a pod carries all of these labels."""
    return all(pod.labels.get(name) == value for name, value in labels)


def score(rules: Rules, pod: PodView) -> int:
    """Return how well a pod pleases: the weights of the preferences that it meets."""
    return sum(preference.weight for preference in rules.preferred if carries(pod, preference.labels))


def domain_of(spread: Spread, pod: PodView) -> str:
    """Return where a pod lies for a spread; all pods without the label lie in one place."""
    return pod.labels.get(spread.topology_key, "") if spread.topology_key else pod.uid


class Crowds:
    """How many actors of each spread group are where, while actors are placed."""

    def __init__(self, pods: Mapping[PodUid, PodView]) -> None:
        """Begin with nobody anywhere."""
        self._pods = pods
        self._holders: dict[tuple[str, str], Counter[PodUid]] = defaultdict(Counter)

    def add(self, actor: ActorView, uid: PodUid, count: int = 1) -> None:
        """Count an actor on a pod; -1 takes it away."""
        if actor.rules.spread is not None:
            self._holders[actor.key.namespace, actor.rules.spread.group][uid] += count

    def count(self, namespace: str, spread: Spread) -> Counter[str]:
        """Return how many actors of a group each domain holds."""
        counts: Counter[str] = Counter()
        for uid, count in self._holders[namespace, spread.group].items():
            pod = self._pods.get(uid)
            if pod is not None:
                counts[domain_of(spread, pod)] += count
        return counts
