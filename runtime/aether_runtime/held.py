"""Tells an operator that took the lead which actors this process holds, since the one before may have died before it wrote that down."""

from __future__ import annotations

import logging
from heapq import nsmallest
from typing import Final

from aether_api import logs
from aether_api.control import HeldActor, HeldPage, HeldQuestion, decode_held_question, encode
from aether_api.errors import AetherError, InvalidEnvelope
from aether_api.identity import PodIdentity
from aether_api.subjects import held_subject
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.message import Message
from aether_runtime.assignments import Assignments
from aether_runtime.registry import VMRegistry

logger = logging.getLogger(__name__)

PAGE_ACTORS: Final = 1_000
"""Actors in one answer: 350 KB at most, as names of resources have up to 253 characters; NATS' default limit is 1 MB."""


class HeldActors:
    """Answers the question for what one process holds."""

    def __init__(self, connection: NatsConnection, namespace: str, pod: PodIdentity, registry: VMRegistry, assignments: Assignments) -> None:
        self._connection = connection
        self._namespace = namespace
        self._pod = pod
        self._registry = registry
        self._assignments = assignments

    def subscribe(self) -> Subscription:
        """Begin to answer."""
        return self._connection.subscribe(held_subject(self._namespace, self._pod.uid), self._on_message)

    def build_page(self, question: HeldQuestion) -> HeldPage:
        """Return the next actors that have a resource, by its name."""
        later = (desired for desired in self._registry.desired.values() if desired.name > question.after)
        found = nsmallest(PAGE_ACTORS + 1, later, key=lambda desired: desired.name)
        actors = tuple(HeldActor(desired.name, desired.uid, desired.epoch) for desired in found[:PAGE_ACTORS])
        return HeldPage(self._pod.uid, self._pod.boot_id, self._assignments.term, actors, more=len(found) > PAGE_ACTORS)

    def _on_message(self, message: Message) -> None:
        if not message.raw_reply:
            return
        try:
            self._connection.respond(message.raw_reply, encode(self.build_page(decode_held_question(message.payload))))
        except InvalidEnvelope as exc:
            logger.warning("a question for held actors cannot be read", extra={logs.REASON: str(exc)})
        except AetherError as exc:
            logger.debug("what is held could not be told; the operator asks again", extra={logs.REASON: str(exc)})
