"""Finds what is wrong with a reminder of a model: a command that the actor sends to itself later.

The server keeps a reminder without knowing the model, so what can be known before is: that its command exists and takes what it
is given, that its moment is one, that its cron text is one that the server takes.
"""

from __future__ import annotations

from collections.abc import Iterator

from aether_api.v1alpha1.actor_model import ActorModelSpec, ReminderSpec
from aether_model.cel_types import BOOL, DURATION, TIMESTAMP
from aether_model.check_schema import Problem
from aether_model.check_scope import Scope, Target
from aether_model.schedule import check_cron, check_zone


def check_reminder(path: str, spec: ActorModelSpec, scope: Scope, reminder: ReminderSpec) -> Iterator[Problem]:
    """Yield every problem of one reminder."""
    if reminder.when is not None:
        yield from scope.check(f"{path}.when", reminder.when, BOOL)
    if (reminder.set is None) == (reminder.cancel is None):
        yield Problem(path, "give the name of the reminder as `set` or as `cancel`, and not as both")
    elif reminder.cancel is not None:
        beside = reminder.model_fields_set - {"cancel", "when"}
        yield from [Problem(path, f"only `when` goes with `cancel`, not {', '.join(sorted(name.rstrip('_') for name in beside))}")] if beside else []
    else:
        yield from _check_command(path, spec, scope, reminder)
        yield from _check_schedule(path, scope, reminder)


def _check_command(path: str, spec: ActorModelSpec, scope: Scope, reminder: ReminderSpec) -> Iterator[Problem]:
    command = spec.commands.get(reminder.command or "")
    if command is None:
        known = ", ".join(sorted(spec.commands))
        yield Problem(f"{path}.command", f"there is no command {reminder.command}; known are {known}" if reminder.command else f"say which command comes later; known are {known}")
        return
    yield from scope.check_object(f"{path}.with", reminder.with_, Target.of(f"command {reminder.command}", command.fields))


def _check_schedule(path: str, scope: Scope, reminder: ReminderSpec) -> Iterator[Problem]:
    given = [name for name in ("at", "after", "cron") if getattr(reminder, name) is not None]
    if len(given) != 1:
        yield Problem(path, f"say when: exactly one of `at`, `after` and `cron`{', not ' + ' and '.join(given) if given else ''}")
    if reminder.at is not None:
        yield from scope.check(f"{path}.at", reminder.at, TIMESTAMP)
    if reminder.after is not None:
        yield from scope.check(f"{path}.after", reminder.after, DURATION)
    if reminder.zone is not None and reminder.cron is None:
        yield Problem(f"{path}.zone", "only `cron` has a time zone")
    if reminder.cron is not None:
        wrong = check_cron(reminder.cron)
        yield from [Problem(f"{path}.cron", wrong)] if wrong else []
        zone = check_zone(reminder.cron, reminder.zone) if reminder.zone is not None else None
        yield from [Problem(f"{path}.zone", zone)] if zone else []
