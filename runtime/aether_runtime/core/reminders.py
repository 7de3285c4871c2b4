"""Reminders, decided: what a command's wish comes to, which reminders are in force, and which ticks run.

A reminder is in force under the token of the commit that set it. Its schedule is made before that commit, so a reminder
whose commit was refused leaves a schedule behind that nobody stands for: its ticks carry an unknown token and are dropped.
At worst a tick comes in vain, never is one lost.

A commit says what it does to reminders as `name:token` pairs; an empty token ends one. A one-shot ends with the commit of
its own command; where that stored nothing it has fired all the same, and the actor's next commit, whatever it is of, ends it in
the log. A VM that comes before that commit takes it for one in force, which does no harm: its schedule is gone.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, assert_never

from aether_api.durable import DurableCommand, Tick
from aether_api.errors import CommandFailed, InvalidEnvelope, InvalidName
from aether_api.identity import check_member
from aether_api.messages import format_time, parse_time
from aether_model.fields import parse_time as parse_moment
from aether_model.model import After, At, CancelReminder, Cron, SetReminder
from aether_model.schedule import check_schedule
from aether_nats.schedules import Reminder

Plan = Mapping[str, Reminder | None]
"""What a command wants of reminders, by name: a new one, or None for its end."""

NO_PLAN: Final[Plan] = MappingProxyType({})
"""Of the commands that want nothing, which are most."""

NO_REMINDERS: Final[Mapping[str, str]] = MappingProxyType({})
"""Shared by all actors that have none, which are most."""

SKIP_AFTER_S: Final = 60.0
"""Seconds after which a tick of policy `skip` is too late to run: longer than a fail-over with a long replay, shorter than what a
person who wrote `skip` would call on time."""


@dataclass(frozen=True, slots=True)
class Run:
    """The command is run."""


@dataclass(frozen=True, slots=True)
class Drop:
    """The tick is settled without being run."""

    why: str


RUN: Final = Run()

LEAD_S: Final = 1.0
"""Seconds by which a schedule is due after it is made, at least: its commit, which takes a millisecond, must be there before its tick."""

CHANGES_BYTES_MAX: Final = 56 << 10
"""Bytes of what a commit may say of reminders: the server takes 64 KB of headers, and the other ones of a commit need 1 or 2. It is some 1,000 reminders."""

TOKEN_BYTES: Final = 24
"""Bytes of a token, at most: it is the id of a commit, which does not exist yet when its commands are decided."""

REMINDER_GONE: Final = "ReminderGone"
"""Reason in the answer to a tick whose reminder is not in force: it was cancelled or replaced, or its commit was refused."""


def no_reminders() -> Mapping[str, str]:
    """Return the reminders of an actor that has none."""
    return NO_REMINDERS


def fold_changes(reminders: Mapping[str, str], text: str) -> Mapping[str, str]:
    """Return the reminders in force after a commit that carries `text`.

    Raises:
        InvalidEnvelope: it is none of ours.
    """
    merged = {**reminders, **parse_changes(text)}
    return {name: token for name, token in merged.items() if token} or NO_REMINDERS


def find_fired(fired: Mapping[str, str], reminders: Mapping[str, str]) -> dict[str, str]:
    """Return the one-shots among `fired` that the log still holds in force, with their tokens; others were set again, or ended."""
    return {name: token for name, token in fired.items() if reminders.get(name) == token}


def format_changes(changes: Mapping[str, str]) -> str:
    """Return what a commit carries."""
    return ",".join(f"{name}:{token}" for name, token in changes.items())


def measure_changes(plan: Plan, in_force: Container[str]) -> int:
    """Return how many bytes of its commit's header a plan needs, at most; ending what is not in force needs none."""
    return sum(measure_change(name, TOKEN_BYTES if reminder else 0) for name, reminder in plan.items() if reminder or name in in_force)


def measure_change(name: str, token_bytes: int = 0) -> int:
    """Return how many bytes one pair needs, with its comma; without a token it ends the reminder."""
    return len(name) + token_bytes + 2


def parse_changes(text: str) -> dict[str, str]:
    """Read what a commit carries, or raise `InvalidEnvelope`."""
    changes: dict[str, str] = {}
    for pair in text.split(","):
        name, colon, token = pair.partition(":")
        if not colon or not name:
            raise InvalidEnvelope(f"header Aether-Reminder must be NAME:TOKEN pairs, not {text!r}")
        changes[name] = token
    return changes


def plan_reminders(wishes: Sequence[SetReminder | CancelReminder], now_s: float) -> Plan:
    """Return what a command wants of reminders; the last wish for a name counts.

    Args:
        now_s: unix time from which durations count.

    Raises:
        CommandFailed: a wish cannot be carried out; the message says why.
    """
    plan: dict[str, Reminder | None] = {}
    for wish in wishes:
        try:
            name = check_member("reminder", wish.name)
            plan[name] = None if isinstance(wish, CancelReminder) else _build_reminder(wish, now_s)
        except InvalidName as exc:
            raise CommandFailed(str(exc)) from exc
    return plan


def _build_reminder(wish: SetReminder, now_s: float) -> Reminder:
    check_member("command", wish.command)
    schedule = wish.schedule
    problem = check_schedule(schedule)
    if problem is not None:
        raise CommandFailed(f"reminder {wish.name}: {problem}")
    match schedule:
        case At(time):
            due_s = parse_moment(time).timestamp()
        case After(seconds):
            due_s = now_s + seconds
        case Cron(text, zone):
            return Reminder(wish.name, wish.command, wish.payload, text.strip(), zone=zone if zone != "UTC" else "", missed=wish.missed)
        case _:
            assert_never(schedule)
    due = format_time(max(due_s, now_s + LEAD_S))
    return Reminder(wish.name, wish.command, wish.payload, f"@at {due}", due, missed=wish.missed)


def is_followed(tick: Tick, later: Sequence[DurableCommand | InvalidEnvelope]) -> bool:
    """Tell whether another tick of the same reminder waits behind one."""
    ticks = [other.tick for other in later if isinstance(other, DurableCommand) and other.tick is not None]
    return any(other.token == tick.token and other.name == tick.name for other in ticks)


def choose_tick(tick: Tick, later: Sequence[DurableCommand | InvalidEnvelope], now_s: float) -> Run | Drop:
    """Decide what becomes of a tick that waited, by its policy. Whether its reminder is in force is decided with its command.

    Args:
        later: what waits behind it.
        now_s: unix time.
    """
    match tick.missed:
        case "late":
            return RUN
        case "collapse":
            return Drop("a later tick of the reminder waits, too, and stands for it") if is_followed(tick, later) else RUN
        case "skip":
            late_s = now_s - parse_time(tick.due).timestamp()
            return Drop(f"it is {late_s:.0f} s late, more than {SKIP_AFTER_S:.0f}") if late_s > SKIP_AFTER_S else RUN
        case _:
            assert_never(tick.missed)
