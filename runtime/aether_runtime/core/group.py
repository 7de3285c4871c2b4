"""Deciding a group of waiting commands: the pure part of group commit.

All commands that waited while the last append was under way form the next group, in order of arrival. Each is decided on
the state that the earlier ones produced; what they emit becomes one commit. Nothing of it leaves before the log has
taken the commit, so a refused append costs only the work.

An answer that stores nothing (rejection, no-op, error, dry run) is just as much a statement about the actor's state as an
event is. It may be sent once the log is known not to have moved: by the ack of the group's commit, or by a read.

This runs once for every command, so its values are msgspec structs (a frozen dataclass costs ten times as much to make) and
what all commands of a group share is made once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Raw

from aether_api.durable import InboxPosition, Tick
from aether_api.envelope import Event, build_event_id, build_source, check_nesting, decode_fields, encode_event
from aether_api.errors import CommandFailed, EventInvalid, InternalError, InvalidEnvelope, Reason
from aether_api.messages import Command, Reply, ReplyEvent, build_error, format_time, make_encodable, parse_time
from aether_model.model import CommandInput, Decision, DomainEvent, Emitted, Model, Rejected, State
from aether_nats.schedules import Reminder
from aether_runtime.core.history import History
from aether_runtime.core.reminders import CHANGES_BYTES_MAX, NO_PLAN, REMINDER_GONE, Plan, measure_change, measure_changes, plan_reminders
from aether_runtime.core.window import AGE_MAX_S, SKEW_S, hash_command_id

COMMANDS_MAX: Final = 256
"""Commands of one group: more would make the first of them wait for the last without adding throughput (measured)."""

WAITED_RETRY_MS: Final = 100
"""Milliseconds after which a command that waited too long may come again: a few groups of a hot actor."""

UNFIT: Final = (Reason.UNKNOWN_COMMAND.value, Reason.INVALID_COMMAND.value)
"""Reasons of a rejection that is no decision; no guard of a model may give them. They settle no durable command: a repeat would meet the same model, so it becomes a dead letter, and whoever
corrects the model retries that."""


class InboxEntry(msgspec.Struct, frozen=True):
    """What makes a command a durable one: its place in the actor's inbox, and the reminder that it comes from, if any."""

    position: InboxPosition
    tick: Tick | None = None


class Waiting(msgspec.Struct):
    """A command that waits for its answer.

    Attributes:
        deadline: monotonic time after which it is answered `Expired` without being decided.
        answer: called exactly once.
        inbox: None for a command whose sender waits. A durable one has no age: its place in the inbox tells whether it was run.
        cleared: sequence up to which the commits that hold a command with the hash of its id were read: of other ids, all of them.
    """

    command: Command
    deadline: float
    answer: Callable[[Reply], None]
    inbox: InboxEntry | None = None
    cleared: int = 0


class Group(msgspec.Struct):
    """What a group of commands comes to.

    Attributes:
        time: of its events, RFC 3339; `time_s` is the same moment in unix time.
        oldest_s: unix time before which a command is too old to be run: its id may have left the window.
        now_s: unix time from which reminders count; `time_s` is ahead of it where a writer's clock was, since event time never runs back.
        answers: in order of arrival; sent when the commit is acked, or the position confirmed.
        immediate: answers that say nothing about the state (expired), sent at once.
        repeats: commands whose ids may be known, with the sequences of the commits to check, newest first.
        encoded: the events to be committed; empty when the group stores nothing.
        accepted: the answers of the commands whose events these are, by id; `digests` are the hashes of these ids, in the same order.
        source: of its events.
        rest: commands that did not fit.
        bytes: of the events so far; at most `bytes_max`.
        inbox: how far the group settles the actor's durable commands; None if not at all.
        reminders: what becomes of reminders, by name: a new one, or None for its end; with the command that wants it.
        setters: the commands that set reminders, also those of which later ones set the same.
        changes_bytes: of the commit's header that `reminders` need, at most; not more than `CHANGES_BYTES_MAX`, but for the end of one one-shot.
        fired: one-shots whose commands store nothing, by name with their tokens; the group's commit ends them, or the next one.
        ended: names and tokens of the schedules that are of no more use once the group is committed.
    """

    state: State
    version: int
    time: str
    time_s: float
    oldest_s: float
    now_s: float
    answers: list[tuple[Waiting, Reply]] = []
    immediate: list[tuple[Waiting, Reply]] = []
    repeats: list[tuple[Waiting, Sequence[int]]] = []
    encoded: list[bytes] = []
    accepted: dict[str, Reply] = {}
    digests: list[int] = []
    source: str = ""
    rest: list[Waiting] = []
    bytes: int = 0
    bytes_max: int = 0
    inbox: InboxPosition | None = None
    reminders: dict[str, tuple[Reminder | None, Waiting]] = {}
    setters: list[Waiting] = []
    changes_bytes: int = 0
    fired: dict[str, str] = {}
    ended: list[tuple[str, str]] = []

    @property
    def members(self) -> list[Waiting]:
        """The commands that must be decided again when the log has moved."""
        return [waiting for waiting, _ in self.answers]


class Now(msgspec.Struct, frozen=True):
    """The time, as an argument: wall clock for events, monotonic for deadlines.

    Attributes:
        text: `unix_s` as `format_time` writes it; empty where nobody has done so yet.
    """

    unix_s: float
    monotonic_s: float
    text: str = ""


def decide_group(history: History, waiting: Sequence[Waiting], now: Now, *, bytes_max: int) -> Group:
    """Decide commands in order on the state that earlier ones produced.

    Args:
        bytes_max: payload bytes of a commit; the command that would exceed it, or what its header may say of reminders, waits for
            the next group, and one that exceeds it alone is answered `CommitTooLarge`.
    """
    group = begin_group(history, now)
    group.bytes_max = bytes_max
    for place, item in enumerate(waiting):
        take = _take if item.inbox is None else _take_durable
        if len(group.answers) >= COMMANDS_MAX or not take(group, history, item, now):
            group.rest = list(waiting[place:])
            break
    return group


def begin_group(history: History, now: Now) -> Group:
    """Return a group without commands; the time of its events never runs back within an actor."""
    position = history.position
    time, time_s = now.text or format_time(now.unix_s), now.unix_s
    if time < position.last_time:
        time, time_s = position.last_time, parse_time(position.last_time).timestamp()
    floor_s = history.window.floor_s
    oldest_s = max(now.unix_s - AGE_MAX_S, floor_s + SKEW_S) if floor_s else now.unix_s - AGE_MAX_S
    return Group(history.state, position.version, time, time_s, oldest_s, now.unix_s)


def _take(group: Group, history: History, item: Waiting, now: Now) -> bool:
    """Put one command into the group; False when it has to wait for the next one."""
    command = item.command
    if (now.monotonic_s > item.deadline or not group.oldest_s <= command.unix_s <= now.unix_s + SKEW_S) and item.inbox is None:
        group.immediate.append((item, _refuse_time(command, item.deadline, now)))
        return True
    earlier = group.accepted.get(command.id)
    if earlier is not None:
        group.answers.append((item, earlier))
        return True
    digest = hash_command_id(command.id)
    sequences = history.window.find_digest(digest)
    if sequences and sequences[0] > item.cleared:
        group.repeats.append((item, sequences))
        return True
    if command.expected_version is not None and command.expected_version != group.version:
        message = f"the actor is at version {group.version}, the command expected {command.expected_version}; read it again and decide anew"
        group.answers.append((item, Reply("rejected", group.version, (), Reason.WRONG_VERSION.value, message, command_id=command.id)))
        return True
    decision, state, plan = _run_model(group, history.model, command)
    if type(decision) is Emitted:
        return _take_events(group, history, item, decision.events, state, plan=plan, digest=digest)
    group.answers.append((item, _build_answer(group, history.model, command, decision)))
    return True


def _take_durable(group: Group, history: History, item: Waiting, now: Now) -> bool:
    """Put a durable command into the group, unless it is settled; its answer settles it, except for an error and where the model knows no such command."""
    entry, answered = item.inbox, len(group.answers)
    if entry is None or history.inbox.covers(entry.position):
        group.immediate.append((item, Reply("noop", group.version, message="it is settled already", command_id=item.command.id)))
        return True
    tick = entry.tick
    if tick is not None and (tick.name in group.reminders or tick.name in group.fired or not history.is_in_force(tick.name, tick.token)):
        group.answers.append((item, Reply("noop", group.version, reason=REMINDER_GONE, message="its reminder is not in force", command_id=item.command.id)))
        tick = None
    elif group.changes_bytes > CHANGES_BYTES_MAX or not _take(group, history, item, now):
        return False
    outcome = group.answers[-1][1].outcome if len(group.answers) > answered and group.answers[-1][1].reason not in UNFIT else "error"
    if outcome != "error":
        group.inbox = entry.position
    if tick is not None and not tick.recurring:
        if outcome == "accepted":
            group.reminders.setdefault(tick.name, (None, item))
            group.changes_bytes += measure_change(tick.name)
        elif outcome != "error":
            group.fired[tick.name] = tick.token
    return True


def _refuse_time(command: Command, deadline: float, now: Now) -> Reply:
    """Return the answer to a command that must not be run any more; only one that waited too long may be sent again."""
    if now.monotonic_s > deadline:
        message = f"it waited longer than its {command.timeout_s:g} s and was not run; send it again"
        return build_error(Reason.EXPIRED, message, command_id=command.id, retry_after_ms=WAITED_RETRY_MS)
    age_s = now.unix_s - command.unix_s
    if age_s > AGE_MAX_S:
        message = f"it was made {age_s:.0f} s ago, more than the {AGE_MAX_S:.0f} s after which a command is never run; send a new one, or check the clocks"
    elif age_s < -SKEW_S:
        message = f"it was made {-age_s:.0f} s in the future, more than clocks may differ ({SKEW_S:.0f} s); check the clocks"
    else:
        message = f"it was made {age_s:.0f} s ago, and this busy actor knows too few earlier commands to tell whether it was run already; send a new one"
    return build_error(Reason.EXPIRED, message, command_id=command.id)


def _run_model(group: Group, model: Model, command: Command) -> tuple[Decision | Reply, State, Plan]:
    """Return what the model decides, the state after it and what becomes of reminders, or the answer to a command that makes the model fail."""
    try:
        decision = model.decide(group.state, CommandInput(command.name, command.payload, command.actor.id, group.version, command.time))
        state, version, plan = group.state, group.version, NO_PLAN
        if type(decision) is Emitted:
            for event in decision.events:
                version += 1
                check_nesting(event.data)
                state = model.apply(state, event.type, event.data, time=group.time, version=version, schema_version=event.schema_version)
            if decision.reminders:
                plan = plan_reminders(decision.reminders, group.now_s)
        elif type(decision) is Rejected:
            decision = Rejected(_read_text(decision.reason), _read_text(decision.message))
        return decision, state, plan
    except InternalError:
        raise
    except Exception as exc:  # noqa: BLE001  # whatever a model raises costs its own command and no other (R1)
        return _build_failed(group, command.id, exc), group.state, NO_PLAN


def _read_text(text: object) -> str:
    """Return what a model says as a text that a reply can carry; nobody holds the author of a model in Python to its types."""
    if not isinstance(text, str):
        raise CommandFailed(f"the command was rejected with {type(text).__name__} where a text belongs; reason and message are texts")
    return make_encodable(text)


def _take_events(group: Group, history: History, item: Waiting, events: Sequence[DomainEvent], state: State, *, plan: Plan, digest: int) -> bool:
    """Add the events of a command to the group, unless they do not fit or it was only a question."""
    command = item.command
    encoded, reply = _encode_events(group, history.position.incarnation, command, events)
    size = sum(map(len, encoded))
    changes = measure_changes(plan, history.reminders) if plan else 0
    if command.dry_run:
        group.answers.append((item, _show(group, history.model, state, reply)))
    elif size > group.bytes_max:
        message = f"its events need {size} bytes, a commit holds {group.bytes_max}"
        group.answers.append((item, build_error(Reason.COMMIT_TOO_LARGE, message, command_id=command.id, version=group.version)))
    elif changes > CHANGES_BYTES_MAX:
        message = f"its {len(plan)} reminders need {changes} bytes, a commit holds {CHANGES_BYTES_MAX} of them; set or cancel fewer with one command"
        group.answers.append((item, build_error(Reason.COMMIT_TOO_LARGE, message, command_id=command.id, version=group.version)))
    elif group.bytes + size > group.bytes_max or group.changes_bytes + changes > CHANGES_BYTES_MAX:
        return False
    else:
        group.answers.append((item, reply))
        group.accepted[command.id] = reply
        group.digests.append(digest)
        group.encoded += encoded
        group.bytes += size
        group.state, group.version = state, reply.version
        if plan:
            group.changes_bytes += changes
            group.reminders |= {name: (reminder, item) for name, reminder in plan.items()}
            if any(plan.values()):
                group.setters.append(item)
    return True


def _encode_events(group: Group, incarnation: int, command: Command, events: Sequence[DomainEvent]) -> tuple[list[bytes], Reply]:
    version, source = group.version, group.source
    if not source:
        source = group.source = build_source(command.actor)
    encoded: list[bytes] = []
    shown: list[ReplyEvent] = []
    for event in events:
        version += 1
        data = Raw(event.data)
        encoded.append(encode_event(Event("1.0", build_event_id(incarnation, version), source, event.type, group.time, data, command.id, "", "", event.schema_version)))
        shown.append(ReplyEvent(event.type, version, group.time, data))
    return encoded, Reply("accepted", version, tuple(shown), "", "", 0, command.id)


def _build_answer(group: Group, model: Model, command: Command, decision: Decision | Reply) -> Reply:
    """Return the answer to a command that stores nothing."""
    if isinstance(decision, Reply):
        return decision
    if isinstance(decision, Rejected):
        reply = Reply("rejected", group.version, (), decision.reason, decision.message, command_id=command.id)
    else:
        reply = Reply("noop", group.version, command_id=command.id)
    return _show(group, model, group.state, reply) if command.dry_run else reply


def _show(group: Group, model: Model, state: State, reply: Reply) -> Reply:
    """Return the answer to a dry run: with the state that would follow, or why that cannot be shown."""
    try:
        return msgspec.structs.replace(reply, dry_run=True, state=decode_fields(Raw(model.encode_state(state))))
    except Exception as exc:  # noqa: BLE001  # as in `_run_model`
        return _build_failed(group, reply.command_id, exc)


def _build_failed(group: Group, command_id: str, error: Exception) -> Reply:
    """Return the answer to a command that its model cannot carry out."""
    text = str(error) if isinstance(error, CommandFailed | EventInvalid | InvalidEnvelope) else f"{type(error).__name__}: {error}"
    return build_error(Reason.COMMAND_FAILED, f"{make_encodable(text)}; nothing was stored", command_id=command_id, version=group.version)
