"""What may go wrong inside the servers, as questions that a server asks; by default nothing does."""

from __future__ import annotations

from typing import Literal

Fate = Literal["stored", "lost"]
"""What becomes of a write that is under way when its stream's leader falls."""


class Hazards:
    """A server on which nothing goes wrong, and nothing takes time."""

    replicas_max = 1
    """Copies of a stream that the servers could hold."""

    def loses_message(self, subject: str) -> bool:
        """Tell whether a message is lost between two servers on its way to one subscriber."""
        return False

    def cut_train(self, length: int) -> int:
        """Return how many of several messages in a row arrive; the rest is lost."""
        return length

    def answer_delay_s(self) -> float:
        """Return how long an answer of JetStream, or an announcement, is on its way."""
        return 0.0

    def write_delay_s(self, replicas: int) -> float:
        """Return how long a write is under way before the stream holds it."""
        return 0.0

    def refuses_write(self, replicas: int) -> bool:
        """Tell whether a write is refused though its expectation is right."""
        return False

    def replica_lag_s(self, replicas: int) -> float:
        """Return by how much the replica is behind that answers a Direct Get; 0 for the leader."""
        return 0.0

    def is_deaf(self) -> bool:
        """Tell whether a stream without a leader says nothing at all; else the sender hears that nobody takes the message."""
        return True

    def fate_of_write(self) -> Fate:
        """Return what becomes of a write whose leader fell."""
        return "stored"

    def choose(self, count: int) -> int:
        """Choose one member of a queue group."""
        return 0
