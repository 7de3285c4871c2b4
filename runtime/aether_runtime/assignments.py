"""The pod's side of placement: takes the operator's assignments over NATS.

An assignment is for one process of one pod. A lower term or epoch than one already seen is refused as stale, with the
epoch that is known, so an old leader or a late message does no harm. Adopt and release are idempotent.

A release is answered when its actor has stopped here, so that the next owner begins behind the last commit and from the last
snapshot; but after `RELEASE_WAIT_S` at the latest, since safety does not depend on it and callers wait for the next owner. Nothing
else waits meanwhile: all of an assignment is carried out at once, and only its answer comes later.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Final

from msgspec.structs import replace

from aether_api import logs
from aether_api.control import RELEASE_WAIT_S, Assignment, AssignmentItem, AssignmentReply, AssignmentResult, decode_assignment, encode
from aether_api.errors import AetherError, InvalidEnvelope, InvalidName
from aether_api.identity import ActorId, Epoch, PodIdentity, PoolName, parse_actor_id
from aether_api.subjects import assign_subject
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.message import Message
from aether_runtime.ports import AssignmentListener, DesiredActor, Spawn
from aether_runtime.registry import VMRegistry

logger = logging.getLogger(__name__)

STILL_GOING: Final = "its last step goes on; the log lets only one owner write"
"""Said of an actor that has not stopped when a release must be answered."""


class Assignments:
    """Answers assignments for one process."""

    def __init__(self, connection: NatsConnection, namespace: str, pod: PodIdentity, registry: VMRegistry, listener: AssignmentListener, *, spawn: Spawn) -> None:
        self._connection = connection
        self._namespace = namespace
        self._pod = pod
        self._registry = registry
        self._listener = listener
        self._spawn = spawn
        self._term = 0

    @property
    def term(self) -> int:
        """The highest term of which an assignment was taken."""
        return self._term

    def subscribe(self, pool: PoolName) -> Subscription:
        """Begin to take assignments."""
        return self._connection.subscribe(assign_subject(self._namespace, pool, self._pod.uid), self._on_message)

    def _on_message(self, message: Message) -> None:
        try:
            assignment = decode_assignment(message.payload)
        except InvalidEnvelope as exc:
            logger.warning("an assignment cannot be read", extra={logs.REASON: str(exc)})
            return
        reply = self.take(assignment)
        if not message.raw_reply:
            return
        going = self._find_going(assignment, reply)
        if going:
            self._spawn(self._answer_when_gone(message.raw_reply, reply, going), "answer to a release")
        else:
            self._answer(message.raw_reply, reply)

    def _answer(self, subject: bytes, reply: AssignmentReply) -> None:
        try:
            self._connection.respond(subject, encode(reply))
        except AetherError as exc:
            logger.debug("the answer to an assignment could not be sent; the operator asks again", extra={logs.REASON: str(exc)})

    async def _answer_when_gone(self, subject: bytes, reply: AssignmentReply, going: Mapping[str, ActorId]) -> None:
        """Answer when these actors have stopped, when the time for it is over, or when this process ends."""
        try:
            waits = [self._registry.wait_let_go(actor) for actor in going.values() if self._registry.is_going(actor)]
            if waits:
                await asyncio.wait(waits, timeout=RELEASE_WAIT_S)
        finally:
            left = {name for name, actor in going.items() if self._registry.is_going(actor)}
            if left:
                logger.warning("actors that were released have not stopped yet", extra={logs.COUNT: len(left)})
            self._answer(subject, replace(reply, results=tuple(replace(result, message=STILL_GOING) if result.name in left else result for result in reply.results)))

    def _find_going(self, assignment: Assignment, reply: AssignmentReply) -> dict[str, ActorId]:
        """Return the actors that were given back and have not stopped yet, by the names of their resources."""
        given_back = [item for item, result in zip(assignment.items, reply.results, strict=True) if item.action == "release" and result.verdict == "done"]
        actors = {item.name: parse_actor_id(self._namespace, item.model, item.id) for item in given_back}
        return {name: actor for name, actor in actors.items() if self._registry.is_going(actor)}

    def take(self, assignment: Assignment) -> AssignmentReply:
        """Carry out an assignment as far as it is for this process and not out of date."""
        if assignment.pod_uid != self._pod.uid or assignment.boot_id != self._pod.boot_id:
            return self._reply(assignment, {item.name: AssignmentResult(item.name, "wrong-pod") for item in assignment.items})
        if assignment.term < self._term:
            return self._reply(assignment, {item.name: AssignmentResult(item.name, "stale", message=f"term {self._term} rules") for item in assignment.items})
        self._term = assignment.term
        return self._reply(assignment, {item.name: self._take_item(item) for item in assignment.items})

    def _reply(self, assignment: Assignment, results: Mapping[str, AssignmentResult]) -> AssignmentReply:
        return AssignmentReply(max(self._term, assignment.term), self._pod.boot_id, tuple(results[item.name] for item in assignment.items))

    def _take_item(self, item: AssignmentItem) -> AssignmentResult:
        try:
            actor = parse_actor_id(self._namespace, item.model, item.id)
        except InvalidName as exc:
            return AssignmentResult(item.name, "refused", message=str(exc))
        known = self._registry.known_epoch(actor)
        if item.epoch < known:
            return AssignmentResult(item.name, "stale", known)
        if item.action == "adopt":
            self._listener.on_assign(_build_desired(actor, item))
        else:
            self._listener.on_release(actor, Epoch(item.epoch))
        return AssignmentResult(item.name, "done", item.epoch)


def _build_desired(actor: ActorId, item: AssignmentItem) -> DesiredActor:
    return DesiredActor(actor, item.name, item.uid, Epoch(item.epoch), item.generation, item.snapshot_every, item.recovery_target_s, item.idle_after_s)
