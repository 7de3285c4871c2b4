"""Deciding and applying: what a caller is told, what is stored, and what a model can never do."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest

from aether_api.errors import CommandFailed, EventInvalid, InternalError, InvalidEnvelope, ModelInvalid
from aether_api.v1alpha1 import ActorModelSpec
from aether_model.advance import Advance, advance, replay
from aether_model.compile import compile_model
from aether_model.decide import CompiledModel
from aether_model.model import CommandInput, Decision, DomainEvent, Emitted, NoOp, Rejected
from aether_model.variables import VARIABLES, variables_of

TIME = "2026-07-01T12:00:00.000000Z"


def compiled(spec: dict[str, Any]) -> CompiledModel:
    return compile_model("test", ActorModelSpec.model_validate(spec))


def one_field(schema: dict[str, Any], **event: Any) -> CompiledModel:
    """A model whose command Put stores its optional or required field `value`."""
    required = event.get("required", [])
    fields = {"properties": {"value": schema}, "required": required}
    state = {"properties": {"value": {**schema, "nullable": True, "default": None}}}
    command = {"schema": fields, "emits": [{"event": "Stored", "with": {"value": "command.value"}}]}
    return compiled({"state": state, "commands": {"Put": command}, "events": {"Stored": {"schema": fields, "set": {"value": "event.value"}}}})


def run(model: CompiledModel, name: str, payload: dict[str, object] | bytes, state: dict[str, object] | None = None) -> Advance:
    return advance(
        model,
        model.initial_state() if state is None else state,
        CommandInput(name, payload if isinstance(payload, bytes) else json.dumps(payload).encode(), "a-1", 0, TIME),
        event_time=TIME,
    )


def rejection(decision: Decision) -> Rejected:
    assert isinstance(decision, Rejected)
    return decision


def test_an_unknown_command_names_the_known_ones() -> None:
    model = compiled({"commands": {"Open": {}, "Close": {}}})
    assert run(model, "Opne", {}).decision == Rejected("UnknownCommand", "model test has no command 'Opne'; known are Close, Open")


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        ({}, "value is required"),
        ({"value": "x"}, 'value: "x" is not of type "integer"'),
        ({"value": 0}, "value: 0 is less than the minimum of 1"),
        ({"value": True}, 'value: true is not of type "integer"'),
        ({"value": 2**63}, f"value: {2**63} is greater than the maximum of {2**63 - 1}"),
        ({"value": 2**80}, "value: 1208925819614629174706176.0 is greater than the maximum of 9223372036854775807"),
        (b"{", "the payload is not JSON: "),
        (b"\xff", "the payload is not JSON: "),
        (b"[]", "the payload must be a JSON object with the command's fields"),
        (b"null", "the payload must be a JSON object with the command's fields"),
        ({"value": 1, "extra": 2, "other": 3}, "unknown field extra, other; known are value"),
        ({"value": "x" * 5000}, "is not of type"),
    ],
)
def test_an_invalid_payload_is_rejected_naming_the_field_and_what_it_should_be(payload: dict[str, object] | bytes, message: str) -> None:
    model = one_field({"type": "integer", "minimum": 1}, required=["value"])
    rejected = rejection(run(model, "Put", payload).decision)
    assert rejected.reason == "InvalidCommand"
    assert message in rejected.message
    assert len(rejected.message) < 400


@pytest.mark.parametrize("text", ["a\0b", "\ud800"])
def test_text_that_the_engine_would_cut_or_refuse_is_rejected(text: str) -> None:
    model = one_field({"type": "object", "additionalProperties": True})
    assert rejection(run(model, "Put", {"value": {"k": [text]}}).decision).reason == "InvalidCommand"
    assert rejection(run(model, "Put", {"value": {text: 1}}).decision).reason == "InvalidCommand"


def test_the_written_form_of_nul_is_ordinary_text() -> None:
    model = one_field({"type": "string"})
    assert run(model, "Put", {"value": r"\u0000"}).state == {"value": r"\u0000"}


def test_nested_fields_are_named_by_their_path() -> None:
    model = one_field({"type": "array", "items": {"type": "object", "properties": {"sku": {"type": "string"}}, "required": ["sku"]}})
    assert rejection(run(model, "Put", {"value": [{"sku": "a"}, {}]}).decision).message == "Put: value[1].sku is required"
    assert rejection(run(model, "Put", {"value": [{"sku": "a", "z": 1}]}).decision).message == "Put: unknown field value[0].z"


def test_defaults_are_filled_in_at_every_depth() -> None:
    schema = {
        "type": "object",
        "default": {},
        "properties": {"a": {"type": "integer", "default": 7}, "b": {"type": "array", "items": {"type": "object", "properties": {"c": {"type": "string", "default": "x"}}}}},
    }
    model = one_field(schema)
    assert run(model, "Put", {}).state == {"value": {"a": 7}}
    assert run(model, "Put", {"value": {"b": [{}]}}).state == {"value": {"a": 7, "b": [{"c": "x"}]}}


def test_defaults_of_one_actor_are_not_those_of_another() -> None:
    model = compiled({"state": {"properties": {"items": {"type": "array", "items": {"type": "string"}, "default": ["a"]}}}})
    model.initial_state()["items"].append("b")  # type: ignore[attr-defined]  # the test misbehaves on purpose
    assert model.initial_state() == {"items": ["a"]}


@pytest.mark.parametrize(("kind", "sent", "stored"), [("number", 1, 1.0), ("integer", 1.0, 1), ("number", 1.5, 1.5)])
def test_numbers_are_settled_to_the_kind_of_their_field(kind: str, sent: float, stored: float) -> None:
    result = run(one_field({"type": kind}, required=["value"]), "Put", {"value": sent})
    assert isinstance(result.decision, Emitted)
    assert result.decision.events[0].data == orjson.dumps({"value": stored})
    assert repr(result.state) == repr({"value": stored})


def test_an_optional_field_that_is_absent_is_null_to_cel_and_left_out_of_the_event() -> None:
    result = run(one_field({"type": "string"}), "Put", {})
    assert result.decision == Emitted((DomainEvent("Stored", b"{}"),))
    assert result.state == {"value": None}


def test_a_nullable_field_may_hold_null_in_an_event() -> None:
    result = run(one_field({"type": "string", "nullable": True}), "Put", {"value": None})
    assert result.decision == Emitted((DomainEvent("Stored", b'{"value":null}'),))


def test_an_optional_field_without_limits_is_still_checked_when_it_has_a_value() -> None:
    spec = {
        "commands": {"Put": {"schema": {"properties": {"value": {"type": "integer"}}}, "emits": [{"event": "Stored", "with": {"value": "command.value"}}]}},
        "events": {"Stored": {"schema": {"properties": {"value": {"type": "string"}}}}},
    }
    assert run(compiled(spec), "Put", {}).decision == Emitted((DomainEvent("Stored", b"{}"),))
    with pytest.raises(CommandFailed, match=r'command Put, emits\[0\] \(Stored\): value: 3 is not of type "string"'):
        run(compiled(spec), "Put", {"value": 3})


def test_guards_run_in_order_and_the_first_that_fails_decides() -> None:
    guards = [{"rule": "true"}, {"rule": "1 > 2", "reason": "Second", "message": "no"}, {"rule": "1 > 2", "reason": "Third"}]
    assert run(compiled({"commands": {"Go": {"guards": guards}}}), "Go", {}).decision == Rejected("Second", "no")


def test_a_guard_without_words_gives_its_rule() -> None:
    assert run(compiled({"commands": {"Go": {"guards": [{"rule": "1 > 2"}]}}}), "Go", {}).decision == Rejected("GuardFailed", "failed rule: 1 > 2")


def test_a_message_that_cannot_be_computed_falls_back_and_stays_a_rejection() -> None:
    guards = [{"rule": "1 > 2", "reason": "No", "message": "fallback", "messageExpression": "string(1 / int('0'))"}]
    assert run(compiled({"commands": {"Go": {"guards": guards}}}), "Go", {}).decision == Rejected("No", "fallback")


def test_a_guard_that_fails_to_run_fails_the_command_and_names_itself() -> None:
    with pytest.raises(CommandFailed, match=r"command Go, guards\[0\] \(Bad\): cannot convert string to int"):
        run(compiled({"commands": {"Go": {"guards": [{"rule": "int('x') > 1", "reason": "Bad"}]}}}), "Go", {})


def two_steps() -> CompiledModel:
    step = {"event": "Stepped", "with": {"to": "state.at + 1"}}
    return compiled(
        {
            "state": {"properties": {"at": {"type": "integer", "default": 0}}},
            "commands": {
                "Walk": {"schema": {"properties": {"twice": {"type": "boolean", "default": False}}}, "emits": [step, {**step, "when": "command.twice"}]},
                "Rest": {"emits": [{**step, "when": "false"}]},
            },
            "events": {"Stepped": {"schema": {"required": ["to"], "properties": {"to": {"type": "integer", "maximum": 9}}}, "set": {"at": "event.to"}}},
        }
    )


def test_an_event_whose_condition_is_false_is_left_out() -> None:
    assert run(two_steps(), "Walk", {}).decision == Emitted((DomainEvent("Stepped", b'{"to":1}'),))


def test_a_command_without_events_left_is_a_noop() -> None:
    assert run(two_steps(), "Rest", {}) == Advance(NoOp(), {"at": 0}, 0)


def test_all_events_of_a_command_see_the_state_before_it() -> None:
    result = run(two_steps(), "Walk", {"twice": True})
    assert result == Advance(Emitted((DomainEvent("Stepped", b'{"to":1}'), DomainEvent("Stepped", b'{"to":1}'))), {"at": 1}, 2)


def test_an_event_that_breaks_its_own_schema_fails_the_command() -> None:
    with pytest.raises(CommandFailed, match=r"emits\[0\] \(Stepped\): to: 10 is greater than the maximum of 9"):
        run(two_steps(), "Walk", {}, {"at": 9})


def adder() -> CompiledModel:
    fields = {"required": ["by"], "properties": {"by": {"type": "integer"}}}
    return compiled(
        {
            "state": {"properties": {"sum": {"type": "integer", "default": 0, "maximum": 2**62}}},
            "commands": {"Add": {"schema": fields, "emits": [{"event": "Added", "with": {"by": "command.by"}}]}},
            "events": {"Added": {"schema": fields, "set": {"sum": "state.sum + event.by"}}},
        }
    )


@pytest.mark.parametrize(("state", "by", "message"), [(2**61, 2**63 - 1, "sum: integer overflow"), (2**61, 2**62, "is greater than the maximum")])
def test_an_overflow_or_a_broken_limit_fails_the_command_before_anything_is_stored(state: int, by: int, message: str) -> None:
    with pytest.raises(CommandFailed, match=message):
        run(adder(), "Add", {"by": by}, {"sum": state})


@pytest.mark.parametrize(
    ("event_type", "data", "message"),
    [
        ("Gone", {}, "model test has no event 'Gone'; known are Added"),
        ("Added", {}, "event Added, version 3: by is required"),
        ("Added", [], "event Added, version 3: the data must be a JSON object with the event's fields"),
        ("Added", {"by": "x"}, 'event Added, version 3: by: "x" is not of type "integer"'),
        ("Added", {"by": 2**63 - 1}, "event Added, version 3, set: sum: integer overflow"),
    ],
)
def test_a_stored_event_that_cannot_be_applied_is_invalid(event_type: str, data: object, message: str) -> None:
    with pytest.raises(EventInvalid) as caught:
        adder().apply({"sum": 1}, event_type, json.dumps(data).encode(), time=TIME, version=3)
    assert str(caught.value) == message


def test_a_stored_event_with_fields_of_a_newer_model_is_applied() -> None:
    assert adder().apply({"sum": 1}, "Added", b'{"by": 2, "reason": "new"}', time=TIME, version=3) == {"sum": 3}


def test_a_state_of_another_model_stops_everything() -> None:
    with pytest.raises(InternalError, match="the state has no field 'sum'"):
        adder().apply({}, "Added", b'{"by": 2}', time=TIME, version=3)


def test_events_replay_to_the_state_that_was_live() -> None:
    assert replay(adder(), [("Added", b'{"by": 2}', TIME), ("Added", b'{"by": 3}', TIME)]) == {"sum": 5}


def test_every_variable_of_the_table_can_be_used_where_it_says() -> None:
    fields = {"properties": {"f": {"type": "string", "default": "x"}}}
    sources: dict[str, list[str]] = {"command": [], "event": []}
    for variable in VARIABLES:
        sources[variable.place].append(f"string({variable.name.replace('<field>', 'f')})")
    state = {"properties": {"f": {"type": "string", "default": "s"}, "seen": {"type": "string", "default": ""}}}
    seen = {place: " + ' ' + ".join(parts) for place, parts in sources.items()}
    model = compiled(
        {
            "state": state,
            "commands": {"Go": {"schema": fields, "emits": [{"event": "Gone", "with": {"f": seen["command"]}}]}},
            "events": {"Gone": {"schema": fields, "set": {"seen": seen["event"]}}},
        }
    )
    after = run(model, "Go", {})
    assert after.state == {"f": "s", "seen": "s s x 2026-07-01T12:00:00Z a-1 0 2026-07-01T12:00:00Z 1"}
    declared = {name for place in ("command", "event") for name in variables_of(place, model.commands["Go"].fields.types, model.events["Gone"].fields.types)}
    assert declared == {variable.name.replace("<field>", "f") for variable in VARIABLES}


def test_a_command_that_needs_its_time_fails_without_it() -> None:
    model = compiled({"commands": {"Go": {"guards": [{"rule": "command.time > timestamp('2026-01-01T00:00:00Z')"}]}}})
    assert run(model, "Go", {}).decision == NoOp()
    with pytest.raises(CommandFailed, match=r"command Go: command.time is not known"):
        model.decide({}, CommandInput("Go", b"{}", "a", 0))


def test_moments_are_kept_as_rfc_3339_in_utc() -> None:
    at = {"type": "string", "format": "date-time"}
    spec = {
        "state": {"properties": {"due": {**at, "default": "2026-01-01T00:00:00Z"}}},
        "commands": {
            "Plan": {"schema": {"required": ["at"], "properties": {"at": at}}, "emits": [{"event": "Planned", "with": {"due": "timestamp(command.at) + duration('90s')"}}]}
        },
        "events": {"Planned": {"schema": {"required": ["due"], "properties": {"due": at}}, "set": {"due": "event.due"}}},
    }
    assert run(compiled(spec), "Plan", {"at": "2026-07-01T02:00:00+02:00"}).state == {"due": "2026-07-01T00:01:30.000000Z"}
    assert rejection(run(compiled(spec), "Plan", {"at": "2026-07-01"}).decision).message == 'Plan: at: "2026-07-01" is not a "date-time"'


def test_a_model_that_does_not_check_is_not_compiled() -> None:
    with pytest.raises(ModelInvalid) as caught:
        compiled({"commands": {"go": {}, "Go": {"guards": [{"rule": "1"}]}}})
    assert [problem.partition(":")[0] for problem in caught.value.problems] == ["spec.commands.Go.guards[0].rule", "spec.commands.go"]


def hashes(**changes: Any) -> tuple[str, str]:
    spec: dict[str, Any] = {
        "version": "1",
        "state": {"properties": {"n": {"type": "integer", "default": 0, "description": "a number"}}},
        "commands": {"Go": {"guards": [{"rule": "true", "message": "old"}]}},
        "events": {"Gone": {"schema": {"properties": {"by": {"type": "integer"}}}, "set": {"n": "state.n + 1"}}},
    }
    model = compiled(copy.deepcopy(spec) | changes)
    return model.content_hash, model.fold


@pytest.mark.parametrize(
    ("change", "fold_kept"),
    [
        ({"version": "2"}, True),
        ({"commands": {"Go": {"guards": [{"rule": "1 < 2", "message": "new"}]}}}, True),
        ({"state": {"properties": {"n": {"type": "integer", "default": 0, "description": "another word"}}}}, True),
        ({"state": {"properties": {"n": {"type": "integer", "default": 1}}}}, False),
        ({"state": {"properties": {"n": {"type": "integer", "default": 0, "minimum": 0}}}}, False),
        ({"events": {"Gone": {"schema": {"properties": {"by": {"type": "integer"}}}, "set": {"n": "state.n + 2"}}}}, False),
        ({"events": {"Gone": {"schema": {"properties": {"by": {"type": "string"}}}, "set": {"n": "state.n + 1"}}}}, False),
    ],
)
def test_only_what_state_depends_on_changes_the_fold(change: dict[str, Any], fold_kept: bool) -> None:
    content_before, fold_before = hashes()
    content, fold = hashes(**change)
    assert content != content_before
    assert (fold == fold_before) is fold_kept


def test_saying_a_default_aloud_changes_no_hash() -> None:
    assert hashes(onDemand=False, description="") == hashes()
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in hashes())


def test_a_state_that_json_cannot_hold_is_an_error_of_the_state() -> None:
    model = one_field({"type": "integer"})
    with pytest.raises(InvalidEnvelope, match="the state of model test cannot be written as JSON"):
        model.encode_state({"value": 1 << 70})
