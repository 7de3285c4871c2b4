"""What every run must have kept, looked at once it has come to rest.

- Acknowledged is stored, once, at that version and with those events; versions have no gaps.
- Refused is refused rightly, on a state that is no older than what anybody had been told before.
- Replay from the first event, replay from the snapshot, and the live actor are the same.
- A repeat of a command gets the first answer, from whoever answers now. A dry run says what would be, and leaves nothing behind.
- What a program saved without a VM is stored as it was told, and what it was refused is not.
- Every durable command took effect once, in order, or was settled without effect, or is a dead letter.
- No reminder is lost; the subscriber has seen every event once, in order; each has one owner by placement.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from aether_api import headers
from aether_api.errors import AetherError, Reason, VersionConflictError
from aether_api.identity import ActorId
from aether_api.messages import Reply, format_time
from aether_api.subjects import dead_subject, event_subject, inbox_stream, inbox_subject, inbox_wildcard, reminder_subject
from aether_model.model import CommandInput, Emitted, Rejected
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.adapters.memory import MemorySnapshotStore
from aether_runtime.clock import LoopClock
from aether_runtime.core.history import History
from aether_runtime.replay import replay
from aether_runtime.replays import ReplayWatch
from aether_runtime.vm import VirtualMachine
from tests.histories.cluster import NAMESPACE, PARTITIONS
from tests.histories.invariants import check_answers
from tests.simulation.clients import RECURRING
from tests.simulation.determinism import START_S
from tests.simulation.importer import check_saves
from tests.simulation.ledger import Ledger, Life, model_of, read_ledger
from tests.simulation.record import Attempt, Wish
from tests.simulation.server.stream import Stored

if TYPE_CHECKING:
    from tests.simulation.world import World

REST_MAX_S: Final = 240.0
"""Virtual seconds in which everything must come to rest: several sweeps, comparisons, restarts of VMs, and time-outs of callers."""

LOOK_S: Final = 0.5
REPEAT_TIMEOUT_S: Final = 20.0
TICKS_S: Final = 12.0
"""Seconds in which a recurring reminder must tick: twice its longest interval."""

WRONG_VERSION: Final = Reason.WRONG_VERSION.value

OPEN: Final = (Reason.UNKNOWN.value, Reason.EXPIRED.value)
"""Reasons in errors that leave it open whether the command took effect, by this try or by an earlier one."""


class Audit:
    """Waits for rest, and checks.

    Attributes:
        problems: what is wrong.
    """

    def __init__(self, world: World) -> None:
        self.problems: list[str] = []
        self._world = world
        self._ledger = Ledger({})
        self._read_at = -1

    async def run(self, connection: NatsConnection) -> None:
        """Check everything, over a connection of its own."""
        client = CommandClient(connection)
        await self._until("everybody has an answer", self._find_busy)
        await self._until("durable commands are settled", self._find_waiting)
        await self._check_recurring(client)
        await self._until("everything is at rest", self._find_restless)
        self._read()
        if self.problems:
            return
        for check in (
            self._check_answers,
            self._check_errors,
            self._check_refusals,
            self._check_dry_runs,
            self._check_saves,
            self._check_durable,
            self._check_reminders,
            self._check_subscriber,
        ):
            check()
        await self._check_live(connection)
        await self._check_repeats(client)

    def _read(self) -> Ledger:
        """Return the logs as they are now."""
        end = sum(stream.last_sequence for stream in self._world.engine.streams.values())
        if end != self._read_at:
            self._read_at = end
            self._ledger, problems = read_ledger(self._world.engine)
            self.problems += [problem for problem in problems if problem not in self.problems]
        return self._ledger

    # Rest.

    async def _until(self, what: str, find: Callable[[], list[str]]) -> None:
        end_s = self._world.loop.time() + REST_MAX_S
        while reasons := find():
            if self._world.loop.time() > end_s:
                self.problems.append(f"not within {REST_MAX_S:.0f} s: {what}: {'; '.join(reasons[:5])}")
                return
            await asyncio.sleep(LOOK_S)

    def _find_busy(self) -> list[str]:
        busy = [process.name for process in self._world.living() if process.name.startswith(("client", "importer", "purger")) and process.pending()]
        return busy + ([] if self._world.pods else ["no pod"])

    def _find_waiting(self) -> list[str]:
        """Return the durable commands that wait, without ticks."""
        stream = self._world.engine.streams[inbox_stream(NAMESPACE)]
        return [f"{message.subject} {message.sequence} waits" for message in stream.select(inbox_wildcard(NAMESPACE)) if headers.REMINDER not in message.headers()]

    def _find_restless(self) -> list[str]:
        stream = self._world.engine.streams[inbox_stream(NAMESPACE)]
        reasons = [f"{message.subject} {message.sequence} waits" for message in stream.select(inbox_wildcard(NAMESPACE))]
        reasons += [f"{subject} is due" for subject in stream.scheduled]
        for actor in self._world.actors:
            reasons += self._find_behind(actor)
        return reasons

    def _find_behind(self, actor: ActorId) -> list[str]:
        """Return who does not know the newest of an actor, and whether it lives twice."""
        subject, reasons = event_subject(actor, PARTITIONS), list[str]()
        last = max((stream.last_of(subject) for stream in self._world.engine.streams.values()), default=0)
        vms = self._find_vms(actor)
        reasons += [f"{actor.id} on {pod} is at {vm.sequence} of {last}, {vm.phase}" for pod, vm in vms if vm.sequence != last]
        reasons += [f"{actor.id} on {pod} is {vm.phase}" for pod, vm in vms if not vm.is_ready]
        # Without a resource, or before its pod knew of it, one more lives until it is idle or meets a commit of the other.
        if len([pod for pod, vm in vms if vm.desired.name]) > 1:
            reasons.append(f"{actor.id} lives on {[pod for pod, _ in vms]}")
        version = len(self._read().of(actor).events)
        seen = len(self._world.record.seen.get(actor, ()))
        return reasons + ([f"the subscriber has {seen} of {version} events of {actor.id}"] if seen != version else [])

    def _find_vms(self, actor: ActorId) -> list[tuple[str, VirtualMachine]]:
        found = [(pod.uid, pod.runtime.registry.get(actor)) for pod in self._world.pods.values() if pod.runtime is not None]
        return [(str(uid), vm) for uid, vm in found if vm is not None]

    # Answers.

    def _check_answers(self) -> None:
        """Acknowledged is stored, and all acknowledgements of one command are the same."""
        first: dict[str, Reply] = {}
        for attempt, reply in self._world.record.replies():
            if reply.outcome != "accepted":
                continue
            wish, lives = attempt.wish, self._ledger.all_of(attempt.wish.actor)
            faults = [fault for life in lives if (fault := _find_fault(life, reply))]
            if len(faults) == len(lives):
                self.problems.append(f"{wish.id}: {faults[-1]}")
            if wish.actor != self._world.mortal:
                known = first.setdefault(wish.id, reply)
                if (known.version, known.events) != (reply.version, reply.events):
                    self.problems.append(f"{wish.id} was acknowledged as {known} and as {reply}")
                if not attempt.is_repeat and reply.version <= attempt.floor:
                    self.problems.append(f"{wish.id} was acknowledged at {reply.version}, though version {attempt.floor} had been told before")
            if wish.expected_version is not None and reply.events[0].version != wish.expected_version + 1:
                self.problems.append(f"{wish.id} expected version {wish.expected_version} and was stored at {reply.events[0].version}")
            if (wish.name, wish.fields.get("amount")) not in _meanings(wish, reply):
                self.problems.append(f"{wish.id} wanted {wish.name} {wish.fields} and got {reply.events}")

    def _check_errors(self) -> None:
        """An error without hope means that nothing was stored."""
        hopeless = {
            attempt.wish.id: attempt.wish for attempt, reply in self._world.record.replies() if reply.outcome == "error" and not reply.retry_after_ms and reply.reason not in OPEN
        }
        others = {
            attempt.wish.id
            for attempt in self._world.record.attempts
            if not isinstance(attempt.answer, Reply) or attempt.answer.outcome != "error" or attempt.answer.reason in OPEN
        }
        for id, wish in hopeless.items():
            if id not in others and any(id in life.command_ids() for life in self._ledger.all_of(wish.actor)):
                self.problems.append(f"{id} was answered with nothing but errors, and it is stored")

    def _check_refusals(self) -> None:
        """What stored nothing had a reason, in a state that was current, and did not take effect before."""
        for attempt, reply in self._world.record.replies():
            wish, lives = attempt.wish, self._ledger.all_of(attempt.wish.actor)
            if reply.outcome not in ("rejected", "noop"):
                continue
            if not any(_justifies(life, wish, reply) for life in lives):
                self.problems.append(f"{wish.id} {wish.name} {wish.fields} was answered without reason: {reply}")
            if wish.actor == self._world.mortal:
                continue
            if reply.version < attempt.floor:
                self.problems.append(f"{wish.id} was {reply.outcome} at version {reply.version}, though version {attempt.floor} had been told before")
            effect = next((event.version for event in lives[-1].events if event.command_id == wish.id), None)
            if effect is not None and effect <= reply.version:
                self.problems.append(f"{wish.id} took effect at {effect} and was {reply.outcome} at {reply.version}")

    def _check_dry_runs(self) -> None:
        """What would be is what the model makes of a current state, and leaves nothing behind."""
        self._world.counts |= {"dry runs": len(self._world.record.dry_runs)} if self._world.record.dry_runs else {}
        for attempt in self._world.record.dry_runs:
            wish, reply = attempt.wish, attempt.answer
            life = self._ledger.of(wish.actor)
            if any(wish.id in life.command_ids() for life in self._ledger.all_of(wish.actor)):
                self.problems.append(f"the dry run {wish.id} is stored")
            if isinstance(reply, Reply) and reply.outcome != "error" and wish.actor != self._world.mortal and (fault := _find_fault_of_dry_run(life, attempt, reply)):
                self.problems.append(f"the dry run {wish.id} {wish.name} {wish.fields} was answered {reply}: {fault}")

    def _check_saves(self) -> None:
        saves, counts = self._world.saves, self._world.counts
        counts |= (
            {"saved": sum(isinstance(save.outcome, tuple) for save in saves), "refused": sum(isinstance(save.outcome, VersionConflictError) for save in saves)} if saves else {}
        )
        self.problems += check_saves(self._world.saves, self._ledger, self._world.mortal)

    # Durable commands and reminders.

    def _check_durable(self) -> None:
        for actor in self._world.actors:
            if actor == self._world.mortal:
                continue
            stream = self._world.engine.streams[inbox_stream(NAMESPACE)]
            sent = [message.headers().get(headers.COMMAND, "") for message in _archive(stream.archive, inbox_subject(actor)) if headers.REMINDER not in message.headers()]
            dead = Counter(message.headers().get(headers.COMMAND, "") for message in _archive(stream.archive, dead_subject(actor)) if headers.REMINDER not in message.headers())
            done = [id for id in self._ledger.of(actor).command_ids() if id in sent]
            if done != [id for id in sent if id in done]:
                self.problems.append(f"durable commands of {actor.id} ran out of order: {done}")
            for wish in self._world.record.wishes:
                if wish.actor == actor and wish.id in sent:
                    self.problems += _check_durable_one(wish, sent.count(wish.id), wish.id in done, dead)
            stored = {wish.id for wish in self._world.record.wishes if wish.actor == actor and wish.durable}
            self.problems += [f"{id} was acknowledged as durable and is nowhere" for id in sorted(self._acknowledged(actor) - set(sent))]
            self.problems += [f"{id} was stored and nobody sent it" for id in sent if id not in stored and not id.startswith("audit")]

    def _acknowledged(self, actor: ActorId) -> set[str]:
        attempts = [attempt for attempt in self._world.record.attempts if attempt.wish.durable and attempt.wish.actor == actor]
        return {attempt.wish.id for attempt in attempts if attempt.answer is not None and not isinstance(attempt.answer, AetherError)}

    def _check_reminders(self) -> None:
        """At rest all one-shots have come, so none is in force any more."""
        for actor in self._world.actors:
            for name in _reminders_of(actor, self._ledger):
                self.problems.append(f"the reminder {name} of {actor.id} is in force and never came")

    async def _check_recurring(self, client: CommandClient) -> None:
        """A recurring reminder in force ticks; then it is ended, so that there can be rest."""
        ledger = self._read()
        for actor in self._world.actors:
            token = _reminders_of(actor, ledger).get(RECURRING)
            stream = self._world.engine.streams[inbox_stream(NAMESPACE)]
            if token is not None and reminder_subject(actor, RECURRING, token) not in stream.scheduled:
                self.problems.append(f"the recurring reminder of {actor.id} is in force, and the server does not know it")
            if token is not None:
                count = len(ledger.of(actor).events)
                await self._until(f"{actor.id} ticks", partial(self._find_silent, actor, count))
        for actor in self._world.actors:
            if actor.model == "alarm":
                await self._send(client, actor, "Cancel", {"name": RECURRING})
            elif not self._world.record.seen.get(actor):
                # Where the only announcements of an actor are lost between servers, its next commit tells a subscriber that it exists.
                await self._send(client, actor, "Deposit", {"amount": 1})

    async def _send(self, client: CommandClient, actor: ActorId, name: str, fields: dict[str, object]) -> None:
        try:
            await client.send(actor, name, fields, command_id=f"audit-{actor.id}", timeout_s=REPEAT_TIMEOUT_S)
        except AetherError as exc:
            self.problems.append(f"{actor.id} does not answer at rest: {exc!r}")

    def _find_silent(self, actor: ActorId, count: int) -> list[str]:
        return [] if len(self._read().of(actor).events) > count else [f"{actor.id} has {count} events"]

    # Others.

    def _check_subscriber(self) -> None:
        self.problems += self._world.record.doubts.values()
        for actor in self._world.actors:
            seen = [(item.version, item.incarnation, item.event) for item in self._world.record.seen.get(actor, ())]
            life = self._ledger.of(actor)
            incarnation = life.commits[0].incarnation if life.commits else 0
            if seen != [(event.version, incarnation, event) for event in life.events]:
                self.problems.append(f"the subscriber saw other events of {actor.id} than the log holds")

    async def _check_live(self, connection: NatsConnection) -> None:
        js = JetStream(connection)
        journal, snapshots = Journal(js, PARTITIONS), JetStreamSnapshotStore(js)
        watch = ReplayWatch(LoopClock(self._world.loop).now, lambda: None)
        for actor in self._world.actors:
            model, life = model_of(actor), self._ledger.of(actor)
            whole = (await replay(actor, model, journal, MemorySnapshotStore(), watch)).history
            short = (await replay(actor, model, journal, snapshots, watch)).history
            if life.states and (_describe(whole)[0], whole.position.version) != (model.encode_state(life.states[-1]), len(life.events)):
                self.problems.append(f"replay of {actor.id} is not what its events say")
            if _describe(whole) != _describe(short):
                self.problems.append(f"replay of {actor.id} from its snapshot differs: {_describe(short)} instead of {_describe(whole)}")
            for pod, vm in self._find_vms(actor):
                if (
                    vm.get_version() == whole.position.version
                    and (model.encode_state(model.decode_state(msgspec.json.encode(vm.get_state()))), vm.inbox, dict(vm.reminders)) != _describe(whole)[:3]
                ):
                    self.problems.append(f"{actor.id} lives on {pod} with {vm.get_state()} {vm.inbox} {vm.reminders}, replay gives {_describe(whole)}")

    async def _check_repeats(self, client: CommandClient) -> None:
        """Whoever answers now gives the first answer, and stores nothing."""
        accepted: dict[str, tuple[Attempt, Reply]] = {}
        for attempt, reply in self._world.record.replies():
            if reply.outcome == "accepted" and attempt.wish.actor != self._world.mortal:
                accepted.setdefault(attempt.wish.id, (attempt, reply))
        before = {actor: len(self._ledger.of(actor).commits) for actor in self._world.actors}
        async with asyncio.TaskGroup() as calls:
            for attempt, reply in accepted.values():
                calls.create_task(self._repeat(client, attempt.wish, reply))
        after = {actor: len(self._read().of(actor).commits) for actor in self._world.actors}
        if after != before:
            self.problems.append(f"repeats were stored: {before}, then {after}")
        self._world.counts["accepted"] = len(accepted)
        self._count()

    def _count(self) -> None:
        """Count what shows that a run was eventful."""
        counts, record = self._world.counts, self._world.record
        for attempt in record.attempts:
            answer = attempt.answer
            kind = answer.outcome if isinstance(answer, Reply) and answer.outcome != "accepted" else type(answer).__name__ if isinstance(answer, AetherError) else ""
            if kind:
                counts[kind] = counts.get(kind, 0) + 1
        counts["repeats"] = sum(attempt.is_repeat for attempt in record.attempts)
        counts["commits"] = sum(len(life.commits) for lives in self._read().lives.values() for life in lives)
        counts["lives"] = sum(len(lives) - 1 for lives in self._read().lives.values())

    async def _repeat(self, client: CommandClient, wish: Wish, first: Reply) -> None:
        try:
            again = await client.send(wish.actor, wish.name, wish.fields, command_id=wish.id, timeout_s=REPEAT_TIMEOUT_S, expected_version=wish.expected_version)
        except AetherError as exc:
            self.problems.append(f"{wish.id} gets no answer when it is repeated at rest: {exc!r}")
            return
        if (again.outcome, again.version, again.events) != (first.outcome, first.version, first.events):
            self.problems.append(f"{wish.id} was answered {first} and, repeated, {again}")


def _find_fault(life: Life, reply: Reply) -> str:
    try:
        check_answers(life.commits, [reply])
    except AssertionError as exc:
        return str(exc).partition("\n")[0] or f"it was acknowledged as {reply}, and the log holds something else"
    return ""


def _find_fault_of_dry_run(life: Life, attempt: Attempt, reply: Reply) -> str:
    """Return what is wrong with an answer; nothing where it is what the model says in that version's state."""
    wish, version, model = attempt.wish, reply.version - len(reply.events), model_of(attempt.wish.actor)
    if version < attempt.floor:
        return f"version {attempt.floor} had been told before"
    if reply.outcome != "accepted":
        return "" if _justifies(life, wish, reply) else "it has no reason"
    decision = model.decide(life.states[version], CommandInput(wish.name, msgspec.json.encode(wish.fields), wish.actor.id, version, format_time(START_S)))
    if not isinstance(decision, Emitted) or [event.data for event in decision.events] != [bytes(event.data) for event in reply.events]:
        return f"it is {decision}"
    state = life.states[version]
    for number, event in enumerate(decision.events, start=version + 1):
        state = model.apply(state, event.type, event.data, time=format_time(START_S), version=number)
    return "" if msgspec.json.decode(model.encode_state(state)) == reply.state else f"the state would be {state}"


def _meanings(wish: Wish, reply: Reply) -> list[tuple[str, object]]:
    """Return what an answer says was wanted."""
    names = {"Opened": "Open", "Deposited": "Deposit", "Withdrawn": "Withdraw"}
    if wish.actor.model != "account":
        return [(wish.name, wish.fields.get("amount"))]
    return [(names[event.type], event.fields().get("amount")) for event in reply.events]


def _justifies(life: Life, wish: Wish, reply: Reply) -> bool:
    """Tell whether an answer that stored nothing is what the model says in that version's state."""
    if not 0 <= reply.version < len(life.states):
        return False
    if reply.reason == WRONG_VERSION:
        return wish.expected_version not in (None, reply.version)
    payload, time = msgspec.json.encode(wish.fields), format_time(START_S)
    decision = model_of(wish.actor).decide(life.states[reply.version], CommandInput(wish.name, payload, wish.actor.id, reply.version, time))
    if isinstance(decision, Rejected):
        return reply.outcome == "rejected" and decision.reason == reply.reason
    return reply.outcome == "noop" and not isinstance(decision, Emitted)


def _archive(archive: dict[int, Stored], subject: str) -> list[Stored]:
    return [message for message in archive.values() if message.subject == subject]


def _check_durable_one(wish: Wish, count: int, is_done: bool, dead: Counter[str]) -> list[str]:
    buried = dead[wish.id]
    problems = [f"{wish.id} was stored {count} times"] if count > 1 else []
    problems += [f"{wish.id} is a dead letter {buried} times"] if buried > 1 else []
    if is_done and buried:
        problems.append(f"{wish.id} took effect and is a dead letter")
    must = wish.name in ("Ring", "Set", "Cancel")
    if must and not is_done and not buried:
        problems.append(f"the durable {wish.name} {wish.id} was lost")
    if wish.name == "Fail" and (is_done or not buried):
        problems.append(f"the durable {wish.id}, which always fails, is no dead letter")
    return problems


def _reminders_of(actor: ActorId, ledger: Ledger) -> dict[str, str]:
    """Return the reminders in force, folded from what commits say."""
    in_force: dict[str, str] = {}
    for commit in ledger.of(actor).commits:
        for pair in commit.reminders.split(",") if commit.reminders else ():
            name, _, token = pair.partition(":")
            in_force[name] = token
    return {name: token for name, token in in_force.items() if token}


def _describe(history: History) -> tuple[object, ...]:
    position = history.position
    return (
        history.model.encode_state(history.state),
        history.inbox,
        dict(history.reminders),
        position.version,
        position.sequence,
        position.index,
        position.incarnation,
        position.last_time,
    )
