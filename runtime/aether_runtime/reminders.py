"""Carries out what a group of commands wants of reminders: schedules before the commit, ends after it.

A schedule without its commit does no harm, since its ticks are dropped; a commit without its schedule would lose a reminder.
Hence the order, and hence what is no longer needed is only ended as well as it goes: the first tick of a forgotten schedule
ends it for good.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from aether_api import logs
from aether_api.errors import AetherError, CommandFailed, PermanentError, Reason, RetryableError, reason_of
from aether_api.identity import ActorId
from aether_api.messages import Reply, build_error, format_time
from aether_nats.schedules import Reminder
from aether_runtime.answers import build_moving
from aether_runtime.core.group import Group, Waiting
from aether_runtime.core.history import History
from aether_runtime.core.reminders import CHANGES_BYTES_MAX, find_fired, measure_change
from aether_runtime.ports import ReminderStore

logger = logging.getLogger(__name__)

RETRY_S: Final = 0.2
"""Seconds between tries to make a schedule while NATS is away; the actor waits meanwhile."""

GIVE_UP_S: Final = 2.0
"""Seconds after which a schedule that cannot be made is given up: a server comes back within them, and who waits behind is not yet out of time."""

UNSCHEDULED_RETRY_MS: Final = 1000
"""Milliseconds after which a command comes again whose schedules could not be made: the actor does other work meanwhile."""

REMAKE_TRIES: Final = 300
"""Tries to make a schedule again, a minute of them: as long as an election takes at its worst."""

Named = tuple[str, str]
"""Name and token of a schedule."""


def choose_changes(group: Group, history: History, token: str) -> dict[str, str]:
    """Return what the commit says of reminders: its token for each that it sets, none for each that it ends.

    It ends those that have fired, too, as far as there is room; the others wait for the next one.
    """
    changes = {name: token if reminder else "" for name, (reminder, _) in group.reminders.items() if reminder or name in history.reminders}
    room = CHANGES_BYTES_MAX - sum(measure_change(name, len(value)) for name, value in changes.items())
    for name in find_fired({**history.fired, **group.fired}, history.reminders):
        room -= measure_change(name)
        if room < 0:
            break
        changes.setdefault(name, "")
    return changes


def find_ended(group: Group, in_force: Mapping[str, str]) -> list[Named]:
    """Return the schedules that are of no more use once the group is committed; a one-shot that has fired is gone by itself."""
    ended: list[Named] = []
    for name, (_, item) in group.reminders.items():
        token = in_force.get(name)
        tick = item.inbox.tick if item.inbox else None
        fired = tick is not None and tick.token == token and not tick.recurring
        if token and not fired:
            ended.append((name, token))
    return ended


def find_made(group: Group, token: str) -> list[Named]:
    """Return the schedules that were made for a commit."""
    return [(name, token) for name, (reminder, _) in group.reminders.items() if reminder]


def choose_patience_s(group: Group, monotonic_s: float) -> float:
    """Return how long to try to make each schedule: at most half of what is left to the first of the group, so that where the first cannot be made the others are still in time."""
    left_s = min(item.deadline for item in group.members) - monotonic_s
    return max(RETRY_S, min(GIVE_UP_S, left_s / 2))


async def make_schedules(
    store: ReminderStore | None, actor: ActorId, group: Group, token: str, *, patience_s: float, is_stopping: Callable[[], bool]
) -> tuple[list[tuple[Waiting, Reply]], list[Named]]:
    """Make the schedules of a group, and return which commands fail instead, and what was then made in vain; the others must be decided again.

    Args:
        patience_s: for each of them. The outcome of a try that this cuts short is unknown, which does no harm.
    """
    begun: list[Named] = []
    for name, (reminder, item) in group.reminders.items():
        if reminder is None:
            continue
        begun.append((name, token))
        problem = "no answer"
        try:
            async with asyncio.timeout(patience_s):
                while problem := await _find_problem(store, actor, reminder, token):
                    if is_stopping():
                        break
                    await asyncio.sleep(RETRY_S)
        except PermanentError as exc:
            reason = Reason.COMMAND_FAILED if isinstance(exc, CommandFailed) else reason_of(exc)
            return [(item, build_error(reason, f"{exc}; nothing was stored", command_id=item.command.id))], begun
        except TimeoutError:
            logger.debug("a schedule could not be made in time", extra={logs.ACTOR_ID: str(actor), logs.NAME: name, logs.REASON: problem})
        if problem and is_stopping():
            return [(member, build_moving(member.command.id)) for member in group.members], begun
        if problem:
            return [(setter, _build_unscheduled(setter, problem)) for setter in group.setters], begun
    return [], begun


async def _find_problem(store: ReminderStore | None, actor: ActorId, reminder: Reminder, token: str) -> str:
    """Make a schedule; return why that has to wait, nothing if it is made."""
    if store is None:
        raise CommandFailed(f"reminder {reminder.name}: this runtime keeps no reminders")
    try:
        await store.set(actor, reminder, token)
    except RetryableError as exc:
        logger.debug("making a schedule has to wait", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
        return str(exc) or type(exc).__name__
    return ""


def _build_unscheduled(item: Waiting, problem: str) -> Reply:
    message = f"its reminders cannot be kept now ({problem}); nothing was stored, send the command again with the same id"
    return build_error(Reason.BUSY, message, command_id=item.command.id, retry_after_ms=UNSCHEDULED_RETRY_MS)


def is_overdue(group: Group, now_s: float) -> bool:
    """Tell whether a one-shot of a group came due before its commit was there: another owner may have dropped its tick."""
    return any(reminder is not None and _has_fired(reminder, now_s) for reminder, _ in group.reminders.values())


async def remake_schedules(store: ReminderStore | None, actor: ActorId, group: Group, token: str) -> None:
    """Make the one-shots of a committed group again; a tick that ran already is known by its token."""
    for name, (reminder, _) in group.reminders.items():
        if store is not None and reminder is not None and reminder.due:
            try:
                await _insist(store, actor, reminder, token)
            except AetherError as exc:
                logger.warning("a reminder may be lost: it came due while its commit was under way", extra={logs.ACTOR_ID: str(actor), logs.NAME: name, logs.REASON: str(exc)})


async def _insist(store: ReminderStore, actor: ActorId, reminder: Reminder, token: str) -> None:
    """Make a schedule, for as long as `REMAKE_TRIES` takes; raises the error of the last try."""
    for _ in range(REMAKE_TRIES - 1):
        try:
            return await store.set(actor, reminder, token)
        except RetryableError as exc:
            logger.debug("making a schedule again has to wait", extra={logs.ACTOR_ID: str(actor), logs.REASON: str(exc)})
            await asyncio.sleep(RETRY_S)
    await store.set(actor, reminder, token)


def _has_fired(reminder: Reminder, now_s: float) -> bool:
    return bool(reminder.due) and reminder.due <= format_time(now_s)


async def end_schedules(store: ReminderStore | None, actor: ActorId, schedules: Sequence[Named]) -> None:
    """End schedules as well as it goes."""
    for name, token in schedules:
        try:
            if store is not None:
                await store.cancel(actor, name, token)
        except AetherError as exc:
            logger.debug("a schedule could not be ended; its next tick will end it", extra={logs.ACTOR_ID: str(actor), logs.NAME: name, logs.REASON: str(exc)})
