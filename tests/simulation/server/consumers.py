"""Consumers that are pulled from: unacknowledged, in the memory of one server, which may be behind."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import partial
from math import inf
from typing import Any, Final

from tests.simulation.server.broker import Broker, Publication
from tests.simulation.server.jetstream import build_block
from tests.simulation.server.stream import Stored, Stream

NS: Final = 1e-9
LOOK_AGAIN_S: Final = 0.05
"""Seconds after which a consumer that had nothing to deliver looks again."""


@dataclass(slots=True)
class Request:
    """What a client asked for and has not got yet."""

    inbox: str
    left: int
    room: int
    expires_s: float


@dataclass(slots=True)
class Consumer:
    """A place in a stream, and who waits there.

    Attributes:
        lag_s: by how much its server is behind.
    """

    stream: Stream
    name: str
    filter: str
    next_sequence: int
    lag_s: float
    delivered: int = 0
    requests: deque[Request] = field(default_factory=deque[Request])
    is_looking: bool = False


class Consumers:
    """The consumers of a server."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._consumers: dict[tuple[str, str], Consumer] = {}

    def create(self, stream: Stream, config: dict[str, Any]) -> None:
        """Make one, or leave one as it is."""
        lag_s = self._broker.hazards.replica_lag_s(stream.config.num_replicas)
        consumer = Consumer(stream, config["name"], config["filter_subject"], config["opt_start_seq"], lag_s)
        self._consumers.setdefault((stream.config.name, consumer.name), consumer)

    def delete(self, stream: str, name: str) -> bool:
        """Remove one and tell who waits there; False if it is not there."""
        consumer = self._consumers.pop((stream, name), None)
        for request in consumer.requests if consumer is not None else ():
            self._broker.forward(request.inbox, Publication(request.inbox, "", b"NATS/1.0 409 Consumer Deleted\r\n\r\n", b""))
        return consumer is not None

    def forget_all(self) -> None:
        """Forget all of them: the server ends."""
        self._consumers.clear()

    def pull(self, stream: str, name: str, question: dict[str, Any], inbox: str) -> bool:
        """Take a request for more; False if there is no such consumer."""
        consumer = self._consumers.get((stream, name))
        if consumer is None:
            return False
        consumer.requests.append(Request(inbox, question["batch"], question["max_bytes"], self._broker.clock.now_s() + question["expires"] * NS))
        self._serve(consumer)
        return True

    def _serve(self, consumer: Consumer) -> None:
        now_s = self._broker.clock.now_s()
        consumer.is_looking = False
        while consumer.requests:
            request = consumer.requests[0]
            found = consumer.stream.select(consumer.filter, now_s - consumer.lag_s if consumer.lag_s else inf)
            batch = [message for message in found if message.sequence >= consumer.next_sequence][: request.left]
            if self._deliver(consumer, request, batch):
                self._end(consumer, "409 Message Size Exceeds MaxBytes")
                continue
            if request.left and now_s < request.expires_s:
                return self._look_again(consumer)
            self._end(consumer, "408 Request Timeout" if request.left else "409 Batch Completed")
        return None

    def _end(self, consumer: Consumer, status: str) -> None:
        """End the first request and say why: as one with a bound on its bytes always does."""
        request = consumer.requests.popleft()
        block = f"NATS/1.0 {status}\r\nNats-Pending-Messages: {request.left}\r\nNats-Pending-Bytes: {request.room}\r\n\r\n".encode()
        self._broker.forward(request.inbox, Publication(request.inbox, "", block, b""))

    def _deliver(self, consumer: Consumer, request: Request, batch: list[Stored]) -> bool:
        """Deliver messages as far as the request has room, and tell whether it had too little."""
        arrives = self._broker.hazards.cut_train(len(batch))
        for place, message in enumerate(batch):
            size = len(message.subject) + len(message.lines) + len(message.payload)
            if size > request.room:
                return True
            request.room -= size
            request.left -= 1
            consumer.delivered += 1
            consumer.next_sequence = message.sequence + 1
            reply = f"$JS.ACK.{consumer.stream.config.name}.{consumer.name}.1.{message.sequence}.{consumer.delivered}.{int(message.stored_s * 1e9)}.0"
            block = build_block(message.lines) if message.lines else b""
            if place < arrives:
                self._broker.forward(request.inbox, Publication(message.subject, reply, block, message.payload))
        return False

    def _look_again(self, consumer: Consumer) -> None:
        if not consumer.is_looking and self._consumers.get((consumer.stream.config.name, consumer.name)) is consumer:
            consumer.is_looking = True
            self._broker.clock.later(LOOK_AGAIN_S, partial(self._serve, consumer))
