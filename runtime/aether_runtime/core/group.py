"""Deciding a group of waiting commands: the pure part of group commit.

All commands that waited while the last append was under way form the next group, in order of arrival. Each is decided on
the state that the earlier ones produced; what they emit becomes one commit. Nothing of it leaves before the log has
taken the commit, so a refused append costs only the work.

An answer that stores nothing (rejection, no-op, error, dry run) is just as much a statement about the actor's state as an
event is. It may be sent once the log is known not to have moved: by the ack of the group's commit, or by a read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from msgspec import Raw

from aether_api.envelope import Event, build_event_id, build_source, decode_fields, encode_event
from aether_api.errors import CommandFailed, EventInvalid, InternalError, Reason
from aether_api.messages import Command, Reply, build_error, build_reply_events, format_time
from aether_model.model import CommandInput, DomainEvent, Emitted, Model, Rejected, State
from aether_runtime.core.history import History, apply_event
from aether_runtime.core.window import AGE_MAX_S, SKEW_S

COMMANDS_MAX: Final = 256
"""Commands of one group: more would make the first of them wait for the last without adding throughput (measured)."""

WAITED_RETRY_MS: Final = 100
"""Milliseconds after which a command that waited too long may come again: a few groups of a hot actor."""


@dataclass(slots=True)
class Waiting:
    """A command that waits for its answer.

    Attributes:
        deadline: monotonic time after which it is answered `Expired` without being decided.
        answer: called exactly once.
    """

    command: Command
    deadline: float
    answer: Callable[[Reply], None]


@dataclass(slots=True)
class Group:
    """What a group of commands comes to.

    Attributes:
        answers: in order of arrival; sent when the commit is acked, or the position confirmed.
        immediate: answers that say nothing about the state (expired), sent at once.
        repeats: commands whose ids are known, with the sequence of the commit to check.
        events: to be committed; empty when the group stores nothing.
        rest: commands that did not fit.
    """

    state: State
    version: int
    last_time: str
    answers: list[tuple[Waiting, Reply]] = field(default_factory=list[tuple[Waiting, Reply]])
    immediate: list[tuple[Waiting, Reply]] = field(default_factory=list[tuple[Waiting, Reply]])
    repeats: list[tuple[Waiting, int]] = field(default_factory=list[tuple[Waiting, int]])
    events: list[Event] = field(default_factory=list[Event])
    encoded: list[bytes] = field(default_factory=list[bytes])
    rest: list[Waiting] = field(default_factory=list[Waiting])
    bytes: int = 0
    accepted: dict[str, Reply] = field(default_factory=dict[str, Reply])

    @property
    def members(self) -> list[Waiting]:
        """The commands that must be decided again when the log has moved."""
        return [waiting for waiting, _ in self.answers]


@dataclass(frozen=True, slots=True)
class Now:
    """The time, as an argument: wall clock for events, monotonic for deadlines."""

    unix_s: float
    monotonic_s: float


def decide_group(history: History, waiting: Sequence[Waiting], now: Now, *, bytes_max: int) -> Group:
    """Decide commands in order on the state that earlier ones produced.

    Args:
        bytes_max: payload bytes of a commit; the command that would exceed it waits for the next group, and one that
            exceeds it alone is answered `CommitTooLarge`.
    """
    group = Group(history.state, history.position.version, history.position.last_time)
    for position, item in enumerate(waiting):
        if len(group.answers) >= COMMANDS_MAX or not _take(group, history, item, now, bytes_max):
            group.rest = list(waiting[position:])
            break
    return group


def _take(group: Group, history: History, item: Waiting, now: Now, bytes_max: int) -> bool:
    """Put one command into the group; False when it has to wait for the next one."""
    command = item.command
    refusal = _check_time(command, item.deadline, now, history.window.floor_s)
    if refusal is not None:
        group.immediate.append((item, refusal))
        return True
    earlier = group.accepted.get(command.id)
    if earlier is not None:
        group.answers.append((item, earlier))
        return True
    sequence = history.window.find(command.id)
    if sequence is not None:
        group.repeats.append((item, sequence))
        return True
    reply, events, encoded, state = _decide_one(group, history, command, now)
    size = sum(map(len, encoded))
    if size > bytes_max:
        reply, events, encoded = (
            build_error(Reason.COMMIT_TOO_LARGE, f"its events need {size} bytes, a commit holds {bytes_max}", command_id=command.id, version=group.version),
            [],
            [],
        )
    elif group.bytes + size > bytes_max:
        return False
    group.answers.append((item, reply))
    if events:
        group.accepted[command.id] = reply
        group.events += events
        group.encoded += encoded
        group.bytes += size
        group.state, group.version, group.last_time = state, events[-1].version, events[-1].time
    return True


def _check_time(command: Command, deadline: float, now: Now, floor_s: float) -> Reply | None:
    """Return the answer to a command that must not be run any more; only one that waited too long may be sent again.

    Args:
        floor_s: unix time since which the window of accepted commands misses nothing, 0 if it misses nothing at all.
    """
    if now.monotonic_s > deadline:
        message = f"it waited longer than its {command.timeout_s:g} s and was not run; send it again"
        return build_error(Reason.EXPIRED, message, command_id=command.id, retry_after_ms=WAITED_RETRY_MS)
    age_s = now.unix_s - command.unix_s
    if age_s > AGE_MAX_S:
        message = f"it was made {age_s:.0f} s ago, more than the {AGE_MAX_S:.0f} s after which a command is never run; send a new one, or check the clocks"
    elif age_s < -SKEW_S:
        message = f"it was made {-age_s:.0f} s in the future, more than clocks may differ ({SKEW_S:.0f} s); check the clocks"
    elif floor_s and command.unix_s < floor_s + SKEW_S:
        message = f"it was made {age_s:.0f} s ago, and this busy actor knows too few earlier commands to tell whether it was run already; send a new one"
    else:
        return None
    return build_error(Reason.EXPIRED, message, command_id=command.id)


def _decide_one(group: Group, history: History, command: Command, now: Now) -> tuple[Reply, list[Event], list[bytes], State]:
    """Return the reply, and the events with the state after them unless nothing is to be stored."""
    nothing: tuple[list[Event], list[bytes], State] = ([], [], group.state)
    model = history.model
    shown = _show(model, group.state) if command.dry_run else None
    if command.expected_version is not None and command.expected_version != group.version:
        message = f"the actor is at version {group.version}, the command expected {command.expected_version}; read it again and decide anew"
        return Reply("rejected", group.version, (), Reason.WRONG_VERSION.value, message, command_id=command.id), *nothing
    try:
        decision = model.decide(group.state, CommandInput(command.name, command.payload, command.actor.id, group.version, command.time))
        if isinstance(decision, Emitted):
            events, state = _build_events(group, history, command, decision.events, now)
            reply = Reply(
                "accepted", events[-1].version, build_reply_events(events), command_id=command.id, dry_run=command.dry_run, state=_show(model, state) if command.dry_run else None
            )
            return (reply, *nothing) if command.dry_run else (reply, events, [encode_event(event) for event in events], state)
    except (CommandFailed, EventInvalid) as exc:
        return build_error(Reason.COMMAND_FAILED, f"{exc}; nothing was stored", command_id=command.id, version=group.version), *nothing
    except InternalError:
        raise
    except Exception as exc:  # noqa: BLE001  # whatever a model raises costs its own command and no other (R1)
        return build_error(Reason.COMMAND_FAILED, f"{type(exc).__name__}: {exc}; nothing was stored", command_id=command.id, version=group.version), *nothing
    if isinstance(decision, Rejected):
        return Reply("rejected", group.version, (), decision.reason, decision.message, command_id=command.id, dry_run=command.dry_run, state=shown), *nothing
    return Reply("noop", group.version, command_id=command.id, dry_run=command.dry_run, state=shown), *nothing


def _build_events(group: Group, history: History, command: Command, emitted: Sequence[DomainEvent], now: Now) -> tuple[list[Event], State]:
    time = max(format_time(now.unix_s), group.last_time)
    source, incarnation = build_source(command.actor), history.position.incarnation
    events: list[Event] = []
    state = group.state
    for version, fact in enumerate(emitted, group.version + 1):
        event = Event("1.0", build_event_id(incarnation, version), source, fact.type, time, Raw(fact.data), command.id)
        state = apply_event(history.model, state, event)
        events.append(event)
    return events, state


def _show(model: Model, state: State) -> dict[str, Any]:
    return decode_fields(Raw(model.encode_state(state)))
