"""Tells pods what to hold, over NATS and ahead of any status: a thousand API writes take seconds, this takes milliseconds.

A message is for one process (pod UID and boot id) and carries at most `ITEMS_MAX` changes; its answer tells the fate of each.
An answer that does not come changes nothing: the status follows all the same, and the pod finds its actors by its own watch. In a rollout
a pod that ran out of time is gone while its last actors are still handed over, a few at a time.
A second try leaves out what was decided otherwise meanwhile: an actor that was deleted and released must not come back.
A `stale` item names the epoch that the pod knows, which becomes the floor of the next plan.

A message carries the leader's term, and pods refuse those of a lower one. A pod that knows of a higher term has heard another leader, so
ours is over. Nothing is sent once the tenure has run out, whatever was under way.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final, Protocol

from aether_api import logs
from aether_api.control import RELEASE_WAIT_S, Action, Assignment, AssignmentItem, AssignmentReply, decode_assignment_reply, encode
from aether_api.errors import UNANSWERED
from aether_api.identity import Epoch, PodUid, PoolName
from aether_api.subjects import assign_subject
from aether_kube.leader import Leadership
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_operator.cluster.observe import Memory
from aether_operator.planning.snapshot import ActorView, PodView

logger = logging.getLogger(__name__)

ITEMS_MAX: Final = 500
"""Actors in one message: about 100 KB, a tenth of NATS' default limit, and a pod takes them in some milliseconds."""

ANSWER_TIMEOUT_S: Final = RELEASE_WAIT_S + 0.3
"""Seconds for an answer: a pod notes what it shall hold, and waits so long for what it gives back; what takes longer is a pod in trouble."""

TRIES_MAX: Final = 2
"""Tries of one message: one may get lost with a link that breaks, two in a row mean that nobody hears."""


class Lookout(Protocol):
    """Whoever knows what became of a plan while it was carried out: the observer."""

    def is_departing(self, uid: PodUid) -> bool:
        """Return whether a pod goes or is gone."""
        ...

    def find_current(self, pod: PodView, items: Sequence[AssignmentItem]) -> Sequence[AssignmentItem]:
        """Return the changes that still stand."""
        ...


class Assigner:
    """Sends assignments and notes what the answers teach."""

    def __init__(self, connection: NatsConnection, leadership: Leadership, memory: Memory, lookout: Lookout) -> None:
        """Make an assigner for one term of leadership."""
        self._connection = connection
        self._leadership = leadership
        self._memory = memory
        self._lookout = lookout

    async def send(self, pod: PodView, items: Sequence[AssignmentItem]) -> bool:
        """Tell a pod's process the changes, and return whether it answered all of them.

        Raises:
            LeadershipLost: nothing more may be sent, or the pod obeys a later leader.
        """
        answered = True
        for start in range(0, len(items), ITEMS_MAX):
            answered = await self._send_batch(pod, items[start : start + ITEMS_MAX]) and answered
        return answered

    async def _send_batch(self, pod: PodView, items: Sequence[AssignmentItem]) -> bool:
        subject = assign_subject(pod.namespace, PoolName(pod.pool), pod.uid)
        for tries_left in reversed(range(TRIES_MAX)):
            self._leadership.check()
            payload = encode(Assignment(self._leadership.term, pod.uid, pod.boot_id, tuple(items)))
            try:
                answer = await self._connection.request(subject, payload, timeout_s=ANSWER_TIMEOUT_S)
                self._learn(pod, decode_assignment_reply(answer.payload))
                return True
            except UNANSWERED as exc:
                level = logging.DEBUG if tries_left or self._lookout.is_departing(pod.uid) else logging.WARNING
                logger.log(level, "a pod did not answer an assignment", extra={logs.POD: pod.name, logs.COUNT: len(items), logs.REASON: str(exc)})
            items = self._lookout.find_current(pod, items)
            if not items:
                return True
        return False

    def _learn(self, pod: PodView, reply: AssignmentReply) -> None:
        self._leadership.note_term(reply.term)
        for result in reply.results:
            key = ObjectKey(pod.namespace, result.name)
            if result.verdict == "stale":
                self._memory.epoch_floors[key] = max(self._memory.epoch_floors.get(key, Epoch(0)), Epoch(result.epoch))
            if result.verdict in ("stale", "refused"):
                extra = {logs.POD: pod.name, logs.ACTOR_ID: result.name, logs.EPOCH: result.epoch, logs.REASON: f"{result.verdict} {result.message}".strip()}
                logger.warning("a pod refused an assignment", extra=extra)


def build_item(action: Action, actor: ActorView, epoch: Epoch) -> AssignmentItem:
    """Return one change for one actor; a release names the epoch that it ends."""
    id_ = actor.identity.id if actor.identity is not None else actor.key.name
    return AssignmentItem(action, actor.key.name, actor.uid, actor.model, id_, epoch, actor.generation, actor.snapshot_every, actor.recovery_target_s, actor.idle_after_s)
