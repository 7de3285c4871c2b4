"""Says what a command of a model in CEL wants of reminders; like its events, on the state before it.

What types cannot rule out (a limit of the later command's schema, a moment out of all calendars) fails the command that sets the
reminder, which its caller hears of, and not the later one, of which nobody would.
"""

from __future__ import annotations

from aether_api.errors import CommandFailed
from aether_model.cel import Activation, CelEvaluationError, encode_json, format_time
from aether_model.compiled import CompiledReminder
from aether_model.model import After, At, CancelReminder, Schedule, SetReminder
from aether_model.schedule import check_schedule


def build_reminders(reminders: tuple[CompiledReminder, ...], activation: Activation, command: str) -> tuple[SetReminder | CancelReminder, ...]:
    """Return what becomes of reminders, in the author's order.

    Raises:
        CommandFailed: one cannot be computed, or could never be kept.
    """
    built: list[SetReminder | CancelReminder] = []
    for i, reminder in enumerate(reminders):
        try:
            if reminder.when is None or reminder.when.holds(activation):
                built.append(_build(reminder, activation))
        except CelEvaluationError as exc:
            raise CommandFailed(f"command {command}, reminders[{i}] ({reminder.name}): {exc}") from exc
    return tuple(built)


def _build(reminder: CompiledReminder, activation: Activation) -> SetReminder | CancelReminder:
    if reminder.data is None or reminder.fields is None:
        return CancelReminder(reminder.name)
    data = reminder.fields.without_nulls(reminder.data.evaluate(activation))
    payload = encode_json(data)
    violation = reminder.fields.violation(data, payload, strict=True)
    if violation is not None:
        raise CelEvaluationError(f"{reminder.command}: {violation}")
    schedule = _schedule_of(reminder, activation)
    problem = check_schedule(schedule) if reminder.cron is None else None
    if problem is not None:
        raise CelEvaluationError(problem)
    return SetReminder(reminder.name, reminder.command, payload, schedule, reminder.missed)


def _schedule_of(reminder: CompiledReminder, activation: Activation) -> Schedule:
    if reminder.at is not None:
        return At(format_time(reminder.at.moment(activation)))
    if reminder.after is not None:
        return After(reminder.after.duration(activation).total_seconds())
    if reminder.cron is not None:
        return reminder.cron
    raise CelEvaluationError("it has no schedule")
