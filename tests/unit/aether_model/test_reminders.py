"""Reminders of models in CEL: what a command wants of them, and what is refused when the model is applied."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from aether_api.errors import CommandFailed
from aether_api.v1alpha1 import ActorModelSpec
from aether_model.check import check_model
from aether_model.compile import compile_model
from aether_model.model import After, At, CancelReminder, CommandInput, Cron, Decision, Emitted, NoOp, SetReminder

TIME = "2026-07-01T12:00:00.000000Z"


def spec_with(*reminders: dict[str, Any], emits: list[dict[str, Any]] | None = None) -> ActorModelSpec:
    """A debt that may be reminded of; Borrow carries the reminders."""
    amount = {"type": "integer", "minimum": 1}
    return ActorModelSpec.model_validate(
        {
            "state": {"properties": {"debt": {"type": "integer", "default": 5}}},
            "commands": {
                "Borrow": {
                    "schema": {
                        "properties": {
                            "amount": {**amount, "default": 7},
                            "due": {"type": "string", "default": "2026-08-01T00:00:00+02:00"},
                            "days": {"type": "integer", "default": 3},
                        }
                    },
                    "emits": [{"event": "Borrowed", "when": "command.amount < 1000"}] if emits is None else emits,
                    "reminders": list(reminders),
                },
                "Remind": {"schema": {"required": ["amount"], "properties": {"amount": amount, "note": {"type": "string"}}}, "emits": [{"event": "Borrowed"}]},
            },
            "events": {"Borrowed": {}},
        }
    )


def borrow(spec: ActorModelSpec, **fields: object) -> Decision:
    model = compile_model("debt", spec)
    return model.decide(model.initial_state(), CommandInput("Borrow", orjson.dumps(fields), "ann", 4, TIME))


def reminders_of(*reminders: dict[str, Any], **fields: object) -> list[SetReminder | CancelReminder]:
    decision = borrow(spec_with(*reminders), **fields)
    assert isinstance(decision, Emitted)
    return list(decision.reminders)


REMIND: dict[str, Any] = {"set": "dun", "command": "Remind", "with": {"amount": "state.debt + command.amount"}}
PAYLOAD = b'{"amount":12}'


@pytest.mark.parametrize(
    ("schedule", "built"),
    [
        ({"after": "duration('90m')"}, After(5400)),
        ({"after": "duration(string(command.days * 24) + 'h')"}, After(3 * 86400)),
        ({"at": "timestamp(command.due)"}, At("2026-07-31T22:00:00.000000Z")),
        ({"at": "command.time + duration('1500ms')"}, At("2026-07-01T12:00:01.500000Z")),
        ({"at": "timestamp('1999-01-01T00:00:00Z')"}, At("1999-01-01T00:00:00.000000Z")),
        ({"cron": "0 0 9 1 * *", "zone": "Europe/Berlin"}, Cron("0 0 9 1 * *", "Europe/Berlin")),
        ({"cron": "@every 1h"}, Cron("@every 1h", "UTC")),
    ],
)
def test_a_command_comes_later_with_what_it_was_given(schedule: dict[str, str], built: After | At | Cron) -> None:
    assert reminders_of({**REMIND, **schedule}) == [SetReminder("dun", "Remind", PAYLOAD, built)]


def test_reminders_keep_their_order_and_their_policy() -> None:
    later = {**REMIND, "after": "duration('1s')", "missed": "collapse"}
    assert reminders_of({"cancel": "dun"}, later, {"cancel": "other"}) == [
        CancelReminder("dun"),
        SetReminder("dun", "Remind", PAYLOAD, After(1), "collapse"),
        CancelReminder("other"),
    ]


def test_a_reminder_whose_condition_is_false_is_left_as_it_is() -> None:
    reminders = ({"cancel": "a", "when": "command.amount > 5"}, {"cancel": "b", "when": "command.amount <= 5"})
    assert reminders_of(*reminders, amount=5) == [CancelReminder("b")]
    assert reminders_of(*reminders, amount=6) == [CancelReminder("a")]


def test_a_null_leaves_an_optional_field_out() -> None:
    reminder = {**REMIND, "with": {"amount": "1", "note": "null"}, "after": "duration('1s')"}
    assert reminders_of(reminder) == [SetReminder("dun", "Remind", b'{"amount":1}', After(1))]


def test_without_an_event_nothing_is_set() -> None:
    assert borrow(spec_with({**REMIND, "after": "duration('1s')"}), amount=1000) == NoOp()


@pytest.mark.parametrize(
    ("reminder", "fields", "words"),
    [
        ({"with": {"amount": "command.amount - 7"}, "after": "duration('1s')"}, {}, "Remind: amount: 0 is less than the minimum of 1"),
        ({"with": {"amount": "command.amount * 9223372036854775807"}, "after": "duration('1s')"}, {}, "amount: integer overflow"),
        ({"after": "duration(command.due)"}, {}, "String to Duration conversion failed"),
        ({"after": "duration('-1s')"}, {}, "after -1 s is not between 0 and"),
        ({"at": "timestamp(command.due)"}, {"due": "tomorrow"}, "Timestamp"),
        ({"after": "duration('1s')", "when": "1 / (command.amount - 7) > 0"}, {}, "divide by zero"),
    ],
)
def test_a_reminder_that_could_never_be_kept_fails_the_command_that_sets_it(reminder: dict[str, Any], fields: dict[str, object], words: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        borrow(spec_with({**REMIND, **reminder}), **fields)
    assert str(caught.value).startswith("command Borrow, reminders[0] (dun): ")
    assert words in str(caught.value)


AT = "spec.commands.Borrow.reminders[0]"


@pytest.mark.parametrize(
    ("reminder", "problems"),
    [
        ({}, [f"{AT}: give the name of the reminder as `set` or as `cancel`, and not as both"]),
        ({"set": "a", "cancel": "b"}, [f"{AT}: give the name of the reminder as `set` or as `cancel`, and not as both"]),
        ({"cancel": "a", "command": "Remind", "with": {"amount": "1"}}, [f"{AT}: only `when` goes with `cancel`, not command, with"]),
        ({"set": "a", "after": "duration('1s')"}, [f"{AT}.command: say which command comes later; known are Borrow, Remind"]),
        ({"set": "a", "command": "Dun", "after": "duration('1s')"}, [f"{AT}.command: there is no command Dun; known are Borrow, Remind"]),
        ({"set": "a", "command": "Remind", "after": "duration('1s')"}, [f"{AT}.with: amount is missing: command Remind requires it"]),
        ({**REMIND, "with": {"amount": "'x'"}, "after": "duration('1s')"}, [f"{AT}.with.amount: gives string, but the field is an integer: use int(...)"]),
        ({**REMIND, "with": {"amount": "1", "x": "1"}, "after": "duration('1s')"}, [f"{AT}.with.x: command Remind has no field 'x'; known are amount, note"]),
        (REMIND, [f"{AT}: say when: exactly one of `at`, `after` and `cron`"]),
        ({**REMIND, "after": "duration('1s')", "cron": "@daily"}, [f"{AT}: say when: exactly one of `at`, `after` and `cron`, not after and cron"]),
        ({**REMIND, "after": "60"}, [f"{AT}.after: gives int where a duration is needed"]),
        ({**REMIND, "after": "command.due"}, [f"{AT}.after: gives string where a duration is needed: use duration(...)"]),
        ({**REMIND, "at": "command.due"}, [f"{AT}.at: gives string where a timestamp is needed: use timestamp(...)"]),
        ({**REMIND, "at": "now()"}, [f"{AT}.at: there is no function 'now': use command.time or event.time, so that replay gives the same (line 1, column 4)"]),
        ({**REMIND, "after": "duration('1s')", "zone": "UTC"}, [f"{AT}.zone: only `cron` has a time zone"]),
        ({**REMIND, "cron": "@daily", "zone": "Moon"}, [f"{AT}.zone: there is no time zone 'Moon'; names are those of IANA, such as Europe/Berlin"]),
        ({**REMIND, "cron": "0 0 25 * * *"}, [f"{AT}.cron: cron '0 0 25 * * *', hour '25': values are 0 to 23"]),
        ({**REMIND, "after": "duration('1s')", "when": "command.amount"}, [f"{AT}.when: gives int where true or false (bool) is needed"]),
    ],
)
def test_what_a_reminder_may_not_say_is_found_when_the_model_is_applied(reminder: dict[str, Any], problems: list[str]) -> None:
    assert [str(problem) for problem in check_model(spec_with(reminder))] == problems


def test_a_command_without_events_sets_no_reminder() -> None:
    problems = check_model(spec_with({**REMIND, "after": "duration('1s')"}, emits=[]))
    assert [str(problem) for problem in problems] == ["spec.commands.Borrow.reminders: reminders take effect with the commit of an event: add one to `emits`"]


def test_reminders_change_what_a_model_is_but_not_how_it_folds() -> None:
    plain, reminding = compile_model("debt", spec_with()), compile_model("debt", spec_with({"cancel": "a"}))
    assert plain.content_hash != reminding.content_hash
    assert plain.fold == reminding.fold
