"""What clients and subscribers saw in a run; the checks hold it against the log."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from aether_api.errors import AetherError
from aether_api.identity import ActorId
from aether_api.messages import Reply
from aether_nats.client import DurableReceipt
from aether_nats.deliveries import ActorVersion, EventStored, Reset


@dataclass(frozen=True, slots=True)
class Wish:
    """A command that somebody wants: what is sent, once or several times."""

    id: str
    actor: ActorId
    name: str
    fields: Mapping[str, object]
    made_s: float
    expected_version: int | None = None
    durable: bool = False


@dataclass(slots=True)
class Attempt:
    """One call of a client.

    Attributes:
        floor: the highest version of the actor that anybody had been told before it was made.
        is_repeat: whether its command had been sent before.
        answer: what came back; None while it is under way, or when its client died.
    """

    wish: Wish
    floor: int
    is_repeat: bool
    answer: Reply | DurableReceipt | AetherError | None = None


@dataclass
class Record:
    """All that was seen.

    Attributes:
        versions: the highest version of each actor that anybody was told.
        seen: the events that the subscriber was told of, of each actor's present life.
        known: how far the subscriber has come, which it keeps through its restarts.
        doubts: holes in what it was told, by actor: right only if a reset follows, since a purge takes what was missed.
        dry_runs: calls that ask what a command would do, which are none of the attempts.
        problems: what is wrong already when it is seen.
    """

    wishes: list[Wish] = field(default_factory=list[Wish])
    attempts: list[Attempt] = field(default_factory=list[Attempt])
    dry_runs: list[Attempt] = field(default_factory=list[Attempt])
    versions: dict[ActorId, int] = field(default_factory=dict[ActorId, int])
    seen: dict[ActorId, list[EventStored]] = field(default_factory=dict[ActorId, list[EventStored]])
    known: dict[ActorId, ActorVersion] = field(default_factory=dict[ActorId, ActorVersion])
    doubts: dict[ActorId, str] = field(default_factory=dict[ActorId, str])
    problems: list[str] = field(default_factory=list[str])

    def begin(self, wish: Wish, *, is_repeat: bool) -> Attempt:
        """Note that a command is sent."""
        attempt = Attempt(wish, self.versions.get(wish.actor, 0), is_repeat)
        self.attempts.append(attempt)
        return attempt

    def begin_dry_run(self, wish: Wish) -> Attempt:
        """Note that somebody asks what a command would do."""
        attempt = Attempt(wish, self.versions.get(wish.actor, 0), is_repeat=False)
        self.dry_runs.append(attempt)
        return attempt

    def end(self, attempt: Attempt, answer: Reply | DurableReceipt | AetherError) -> None:
        """Note what came back."""
        attempt.answer = answer
        if isinstance(answer, Reply) and answer.outcome != "error" and not answer.dry_run:
            self.versions[attempt.wish.actor] = max(answer.version, self.versions.get(attempt.wish.actor, 0))

    def replies(self) -> list[tuple[Attempt, Reply]]:
        """Return the answers of actors."""
        return [(attempt, attempt.answer) for attempt in self.attempts if isinstance(attempt.answer, Reply)]

    def take(self, item: EventStored) -> None:
        """Note an event that the subscriber was told of: each one once, and in order."""
        seen = self.seen.setdefault(item.actor, [])
        if seen and seen[-1].incarnation != item.incarnation:
            self.problems.append(f"the subscriber got {item.actor} {item.incarnation}.{item.version} without a reset")
            seen.clear()
        if item.version != len(seen) + 1:
            self.doubts[item.actor] = f"the subscriber got {item.actor} {item.incarnation}.{item.version} after {len(seen)}"
        seen.append(item)
        self.known[item.actor] = ActorVersion(item.version, 0, item.incarnation)  # its commit may hold more

    def reset(self, item: Reset) -> None:
        """Note that an actor begins a new life."""
        self.seen[item.actor] = []
        self.doubts.pop(item.actor, None)
        self.known[item.actor] = ActorVersion(0, 0, item.incarnation)
