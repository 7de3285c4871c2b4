"""Faults of the production code on purpose: each takes one rule away that a history depends on, and the simulation must notice.

A simulation that finds nothing proves nothing; this list says what it can find. Each entry names the rule, patches it away, and
has a seed that is known to find it, which is tried first. Rules with a second line of defence show only where that ends: a lost ack that is
taken for a refusal does not repeat a command, since the window knows its id, but it loses the reminder that the command set.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pytest import MonkeyPatch  # noqa: PT013  # the type alone is wanted

from aether_api import headers
from aether_api.envelope import Commit, StoredCommit, encode_commit
from aether_api.errors import AetherError, EventInvalid, InvalidEnvelope
from aether_api.identity import ActorId
from aether_api.subjects import event_stream, event_subject, partition_of
from aether_nats.appends import Append
from aether_nats.commit_reader import decode_stored
from aether_nats.event_subscription import EventSubscription
from aether_nats.inbox import Inbox
from aether_nats.journal import Journal
from aether_nats.schedules import Schedules
from aether_nats.stream_watch import StreamWatch
from aether_runtime import inbox as inboxes
from aether_runtime.core.group import Group
from aether_runtime.core.history import History
from aether_runtime.core.window import CommandWindow
from aether_runtime.ports import CommitLog
from aether_runtime.presence import choose_pod
from aether_runtime.replay import catch_up
from aether_runtime.runtime import Runtime
from aether_runtime.vm import VirtualMachine
from aether_runtime.vm_reading import Tail
from tests.simulation.faults import UNRULY


@dataclass(frozen=True, slots=True)
class Mutation:
    """One rule taken away.

    Attributes:
        rule: what is not done any more.
        apply: patches the production code.
        seed: one that is known to notice.
        worse: faults without which the rule is hardly ever needed.
    """

    rule: str
    apply: Callable[[MonkeyPatch], None]
    seed: int
    worse: Mapping[str, Any] | None = None


def _look_at_the_last_commit_only(patch: MonkeyPatch) -> None:
    async def learn_nothing(history: History, *arguments: Any) -> bool:
        known = CommandWindow(history.window.pack())
        is_ours = await catch_up(history, *arguments)
        history.window = known
        return is_ours

    patch.setattr(Tail, "holds", lambda self, commit_id: any(commit.id == commit_id for commit in self.commits[-1:]))
    patch.setattr("aether_runtime.vm_reading.catch_up", learn_nothing)  # else the window, the second line of defence, knows the ids of all that were read


def _forget_commands(patch: MonkeyPatch) -> None:
    patch.setattr(CommandWindow, "find_digest", lambda self, digest: ())


def _confirm_nothing(patch: MonkeyPatch) -> None:
    async def answer(self: VirtualMachine, group: Group) -> None:
        self._send(group.answers)
        self._release_step()

    patch.setattr(VirtualMachine, "_confirm", answer)


def _ignore_epochs(patch: MonkeyPatch) -> None:
    patch.setattr(VirtualMachine, "_go_on_or_end", lambda self, tail: self._release_step() if tail.end != "other" else self._end_stale())


def _answer_before_the_ack(patch: MonkeyPatch) -> None:
    append = VirtualMachine._append_commit

    def answer_first(self: VirtualMachine, commit: Commit, group: Group) -> None:
        self._send(group.answers)
        append(self, commit, group)

    patch.setattr(VirtualMachine, "_append_commit", answer_first)
    patch.setattr(VirtualMachine, "_send_committed", lambda self, group: None)


def _append_without_a_fence(patch: MonkeyPatch) -> None:

    def encode_bare(commit: Commit) -> tuple[bytes, bytes]:
        lines, payload = encode_commit(commit)
        return b"".join(line + b"\r\n" for line in lines.split(b"\r\n") if line and not line.startswith(headers.EXPECTED_SEQUENCE.encode())), payload

    patch.setattr("aether_nats.appends.encode_commit", encode_bare)


def _take_a_lost_ack_for_a_refusal(patch: MonkeyPatch) -> None:
    patch.setattr("aether_nats.appends.UNKNOWN_OUTCOMES", ())


def _read_heads_from_any_replica(patch: MonkeyPatch) -> None:
    async def read_head(self: Journal, actor: ActorId) -> StoredCommit | None:
        message = await self._js.direct_by_last(event_stream(actor.namespace, partition_of(actor, self.partitions)), event_subject(actor, self.partitions))
        return None if message is None else decode_stored(message)

    patch.setattr(Journal, "read_head", read_head)


def _settle_before_running(patch: MonkeyPatch) -> None:
    read = Inbox.read_next

    async def read_and_settle(self: Inbox, actor: ActorId, after: int, **bounds: int) -> Sequence[Any]:
        messages = await read(self, actor, after, **bounds)
        if messages:
            await self.settle(actor, messages[-1].sequence)
        return messages

    patch.setattr(Inbox, "read_next", read_and_settle)


def _make_no_schedules(patch: MonkeyPatch) -> None:
    """As if the schedule were made after the commit, by a process that dies in between."""
    make = Schedules.set

    async def forget_some(self: Schedules, *arguments: Any) -> None:
        if hash(arguments[2].encode()[-1:]) % 2:
            await make(self, *arguments)

    patch.setattr(Schedules, "set", forget_some)


def _sweep_nothing_after_a_loss(patch: MonkeyPatch) -> None:
    patch.setattr(EventSubscription, "note_loss", lambda self: None)
    patch.setattr(StreamWatch, "note_loss", lambda self: None)
    patch.setattr(StreamWatch, "_plan", _plan_nothing)


async def _plan_nothing(self: StreamWatch) -> None:
    self._compare_at = self._loop.time() + 1000.0


def _take_batches_with_holes(patch: MonkeyPatch) -> None:
    patch.setattr("aether_nats.jetstream.check_batch", lambda messages, end: None)


def _hold_a_position_in_memory_only(patch: MonkeyPatch) -> None:
    """A drain begins at the end of what it has handed over, whatever became of it."""
    patch.setattr(inboxes, "judge", lambda reply: "settled")


def _restore_no_subscriptions(patch: MonkeyPatch) -> None:
    patch.setattr("aether_nats.fast.FastLink.restore", lambda self: setattr(self, "_is_up", True))


def _take_a_purge_for_a_broken_log(patch: MonkeyPatch) -> None:
    async def blame(actor: ActorId, events: CommitLog, head: StoredCommit, error: InvalidEnvelope) -> EventInvalid:
        return EventInvalid(str(error))

    patch.setattr("aether_runtime.replay._explain_missing", blame)


def _let_hashing_decide_against_placements(patch: MonkeyPatch) -> None:
    patch.setattr(Runtime, "_may_keep", lambda self, actor: choose_pod(actor, self.presence.pods.live()) in (self.config.pod.uid, None))


def _take_a_refused_batch_for_stored(patch: MonkeyPatch) -> None:
    def settle(self: Append, error: AetherError, *, sent: bool) -> None:
        if not self.outcome.done():
            self.outcome.set_result(self.commit.expected_sequence + 1)

    patch.setattr(Append, "on_batch_failed", settle)


def _leave_subscriptions_behind(patch: MonkeyPatch) -> None:
    def drop(self: Runtime, vm: VirtualMachine) -> None:
        self.followers.leave(vm)
        self.passivation.give_back_place(vm)
        if self.registry.get(vm.get_actor_id()) is vm:
            self.registry.remove(vm)
            self.passivation.on_gone()

    patch.setattr(Runtime, "drop", drop)


RIVALS: Final[Mapping[str, Any]] = {"watch_lag_s": 10.0, "release_loss": 0.9, "calls_per_s": 12.0, "events": {"move": 1.0}}
"""Owners that do not hear for long that their actors have moved, while both are asked."""

STALE: Final[Mapping[str, Any]] = {"replicas": 3, "stale": 0.9, "lag_max_s": 2.0, "events": {"move": 1.0, "kill": 0.2}}
"""Replicas that are behind, while actors move."""

LOSS: Final[Mapping[str, Any]] = {"loss": 0.05, "cut_after_send": 0.003, "calls_per_s": 12.0}
"""Lost messages, under load."""

RIVALS_IN_BATCHES: Final[Mapping[str, Any]] = {**RIVALS, "replicas": 1}
"""The same where commits travel together, if the seed says so."""

PURGES: Final[Mapping[str, Any]] = {"latency_s": 0.02, "calls_per_s": 12.0, "events": {"purge": 1.5, "move": 1.0}}
"""Many lives that end while they are read."""

SLOW: Final[Mapping[str, Any]] = {"latency_s": 0.01, "answer_s": 0.05, "calls_per_s": 12.0}
"""Much happens between a question and its answer."""

MUTATIONS: Final = (
    Mutation("after a refusal all commits since are looked at, not only the last", _look_at_the_last_commit_only, 1, RIVALS),
    Mutation("a command id that took effect is known", _forget_commands, 1),
    Mutation("what stores nothing is confirmed by a read of the log", _confirm_nothing, 16, RIVALS),
    Mutation("an owner of a lower epoch stops", _ignore_epochs, 1, RIVALS),
    Mutation("an answer leaves after the ack", _answer_before_the_ack, 2),
    Mutation("an append names the sequence that it follows", _append_without_a_fence, 2),
    Mutation("after an unknown outcome the same commit is sent again", _take_a_lost_ack_for_a_refusal, 61, LOSS),
    Mutation("heads are read from the leader", _read_heads_from_any_replica, 1, STALE),
    Mutation("a durable command is removed once it is settled", _settle_before_running, 4),
    Mutation("a durable command that got no word from its model is asked again", _hold_a_position_in_memory_only, 6),
    Mutation("a schedule is made before its commit", _make_no_schedules, 2),
    Mutation("a subscriber looks into the log after a loss", _sweep_nothing_after_a_loss, 1),
    Mutation("commits that a purge takes while they are read are no broken log", _take_a_purge_for_a_broken_log, 76, PURGES),
    Mutation("an owner by placement stays against one without", _let_hashing_decide_against_placements, 161, SLOW),
    Mutation("a batch of reads is checked for holes", _take_batches_with_holes, 9, LOSS),
    Mutation("commits of a refused batch go alone", _take_a_refused_batch_for_stored, 5, RIVALS_IN_BATCHES),
    Mutation("subscriptions are restored after a reconnect", _restore_no_subscriptions, 1),
    Mutation("a subscription ends with its VM", _leave_subscriptions_behind, 3, UNRULY),
)
