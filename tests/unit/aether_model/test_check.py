"""Checking a model: every problem is found at once, with a path and words that help."""

from __future__ import annotations

from typing import Any

import pytest

from aether_api.v1alpha1 import ActorModelSpec
from aether_model.cel import CelError, Environment
from aether_model.cel_types import INT
from aether_model.check import check_model
from aether_model.check_schema import CEL_KEYWORDS, Problem
from aether_model.compile import compile_model

CEL_RESERVED = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "namespace",
    "null",
    "package",
    "return",
    "true",
    "var",
    "void",
    "while",
    "type",
    "int",
    "has",
    "map",
    "all",
    "size",
]


def problems_of(spec: dict[str, Any]) -> list[str]:
    return [str(problem) for problem in check_model(ActorModelSpec.model_validate(spec))]


def counter(**changes: Any) -> dict[str, Any]:
    """A sound model that counts; tests replace one part."""
    spec = {
        "state": {"properties": {"count": {"type": "integer", "default": 0}, "note": {"type": "string", "default": None, "nullable": True}}},
        "commands": {
            "Add": {
                "schema": {"required": ["by"], "properties": {"by": {"type": "integer", "minimum": 1}, "note": {"type": "string"}}},
                "guards": [{"rule": "state.count + command.by < 100", "reason": "Full", "messageExpression": "'at ' + string(state.count)"}],
                "emits": [{"event": "Added", "when": "command.by > 0", "with": {"by": "command.by", "note": "command.note"}}],
            }
        },
        "events": {
            "Added": {
                "schema": {"required": ["by"], "properties": {"by": {"type": "integer"}, "note": {"type": "string"}}},
                "set": {"count": "state.count + event.by", "note": "event.note"},
            }
        },
    }
    return spec | changes


def with_state(**schema: Any) -> dict[str, Any]:
    return {"state": {"properties": {"field": schema}}}


def with_set(sources: dict[str, str]) -> dict[str, Any]:
    fields = {
        "properties": {
            "count": {"type": "integer", "default": 0},
            "rate": {"type": "number", "default": 0},
            "at": {"type": "string", "format": "date-time", "default": "2026-01-01T00:00:00Z"},
        }
    }
    lists = {"names": {"type": "array", "items": {"type": "string"}, "default": []}, "open": {"type": "boolean", "default": False}, "word": {"type": "string", "default": ""}}
    return {"state": {"properties": fields["properties"] | lists}, "events": {"Changed": {"schema": {"properties": {"any": {"type": "integer"}}}, "set": sources}}}


def test_a_sound_model_has_no_problems() -> None:
    assert problems_of(counter()) == []


def test_an_empty_model_is_sound() -> None:
    assert problems_of({}) == []


def test_all_problems_are_reported_at_once_sorted_by_path() -> None:
    broken = counter()
    broken["commands"]["Add"]["guards"] = [{"rule": "state.cuont > 1 && zzzz", "reason": "Busy"}] + [{"rule": "true"}] * 9 + [{"rule": "1"}]
    broken["commands"]["Add"]["emits"] = [{"event": "Addded"}]
    broken["state"]["properties"]["bad-name"] = {"type": "string"}
    assert problems_of(broken) == [
        "spec.commands.Add.emits[0].event: there is no event Addded; known are Added",
        "spec.commands.Add.guards[0].reason: Busy is a reason of Aether itself, by which clients decide whether to try again: use another word",
        "spec.commands.Add.guards[0].rule: undeclared reference to 'state.cuont'; did you mean 'state.count'? (line 1, column 6)",
        "spec.commands.Add.guards[0].rule: undeclared reference to 'zzzz'; known here: actor.id, actor.version, command.by, command.note, command.time, state.count, state.note (line 1, column 20)",
        "spec.commands.Add.guards[10].rule: gives int where true or false (bool) is needed",
        'spec.state.properties["bad-name"]: a field of the state needs a default: all defaults together are the initial state',
        "spec.state.properties[\"bad-name\"]: a field's name is a letter, then letters, digits and '_', at most 63, since it becomes a variable",
    ]


@pytest.mark.parametrize("name", ["withdraw", "With_draw", "With-draw", "", "A" * 64, "Währung"])
def test_commands_and_events_are_pascal_case(name: str) -> None:
    assert "names are PascalCase" in problems_of({"commands": {name: {}}})[0]
    assert "names are PascalCase" in problems_of({"events": {name: {}}})[0]


def test_the_time_of_commands_and_events_cannot_be_hidden_by_a_field() -> None:
    fields = {"schema": {"properties": {"time": {"type": "string"}}}}
    assert problems_of({"commands": {"Pay": fields}}) == [
        "spec.commands.Pay.schema.properties.time: command.time is the command's own time: call the field otherwise, such as 'due' or 'paidAt'"
    ]
    assert problems_of({"events": {"Paid": fields}}) == [
        "spec.events.Paid.schema.properties.time: event.time is the event's own time: call the field otherwise, such as 'due' or 'paidAt'"
    ]
    assert problems_of({"state": {"properties": {"time": {"type": "string", "default": ""}}}}) == []


@pytest.mark.parametrize("word", CEL_RESERVED)
def test_exactly_the_words_that_cannot_be_variables_are_refused_as_fields(word: str) -> None:
    try:
        Environment({f"state.{word}": INT}).compile(f"state.{word} + 1")
        compiles = True
    except CelError:
        compiles = False
    assert (word not in CEL_KEYWORDS) is compiles
    assert (problems_of({"state": {"properties": {word: {"type": "integer", "default": 0}}}}) == []) is compiles


def test_an_emit_gives_every_required_field_and_no_unknown_one() -> None:
    broken = counter()
    broken["commands"]["Add"]["emits"] = [{"event": "Added", "with": {"bye": "command.by"}}]
    assert problems_of(broken) == [
        "spec.commands.Add.emits[0].with: by is missing: event Added requires it",
        "spec.commands.Add.emits[0].with.bye: event Added has no field 'bye'; known are by, note",
    ]


def test_a_required_field_with_a_default_need_not_be_given() -> None:
    model = counter()
    model["events"]["Added"]["schema"]["properties"]["by"]["default"] = 1
    model["commands"]["Add"]["emits"] = [{"event": "Added"}]
    assert problems_of(model) == []


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({"counter": "1"}, "the state has no field 'counter'; known are at, count, names, open, rate, word"),
        ({"count": "'1'"}, "gives string, but the field is an integer: use int(...)"),
        ({"count": "1.5"}, "gives double, but the field is an integer: use int(...)"),
        ({"count": "1u"}, "gives uint, but the field is an integer: use int(...)"),
        ({"count": "null"}, "gives null, but the field is an integer that is not nullable"),
        ({"word": "event.time"}, "gives a timestamp, but the field is a string: add `format: date-time` to it, or use string(...)"),
        ({"word": "duration('1s')"}, "gives duration, but the field is a string: use string(...)"),
        ({"word": "b'x'"}, "gives bytes, but the field is a string: use string(...)"),
        ({"open": "1"}, "gives int, but the field is a boolean"),
        ({"names": "[1]"}, "gives list<int>, but the field is an array of string"),
        ({"names": "'a'"}, "gives string, but the field is an array of string"),
    ],
)
def test_types_that_can_never_agree_are_refused(sources: dict[str, str], message: str) -> None:
    (problem,) = problems_of(with_set(sources))
    assert problem == f"spec.events.Changed.set.{next(iter(sources))}: {message}"


@pytest.mark.parametrize(
    "sources",
    [
        {"rate": "1"},
        {"rate": "1.5"},
        {"at": "event.time"},
        {"at": "'2026-01-01T00:00:00Z'"},
        {"count": "event.any"},
        {"names": "state.names + ['a']"},
        {"names": "[]"},
        {"count": "size(state.names)"},
    ],
)
def test_types_that_may_agree_are_taken(sources: dict[str, str]) -> None:
    assert problems_of(with_set(sources)) == []


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "string"}, "spec.state.properties.field: a field of the state needs a default: all defaults together are the initial state"),
        ({"type": "integer", "default": "x"}, 'spec.state.properties.field.default: "x" is not of type "integer"'),
        ({"type": "integer", "default": 0, "minimum": 1}, "spec.state.properties.field.default: 0 is less than the minimum of 1"),
        ({"type": "integer", "default": None}, 'spec.state.properties.field.default: null is not of type "integer"'),
        ({"type": "integer", "default": 2**63}, f"spec.state.properties.field.default: {2**63} is greater than the maximum of {2**63 - 1}"),
        ({"type": "integer", "default": 2**70}, "spec.state.properties.field.default: cannot be written as JSON: Integer exceeds 64-bit range"),
        ({"type": "string", "default": "a\0"}, "spec.state.properties.field.default: holds the character NUL"),
        ({"type": "string", "default": "\ud800"}, "spec.state.properties.field.default: cannot be written as JSON: str is not valid UTF-8: surrogates not allowed"),
        (
            {"type": "string", "default": "", "pattern": "(?=a)"},
            "spec.state.properties.field.pattern: '(?=a)' is no regular expression of linear time (RE2: no look-around, no back references)",
        ),
        ({"type": "string", "default": "", "minimum": 1}, "spec.state.properties.field.minimum: has no meaning for type string, only for integer and number"),
        ({"type": "integer", "default": 0, "minLength": 1}, "spec.state.properties.field.minLength: has no meaning for type integer, only for string"),
        ({"type": "integer", "default": 3, "minimum": 5, "maximum": 1}, "spec.state.properties.field.minimum: 5 is above maximum, 1: no value could be valid"),
        ({"type": "number", "default": 0, "maximum": float("inf")}, "spec.state.properties.field.maximum: inf is no limit"),
        ({"type": "string", "default": "a", "enum": []}, "spec.state.properties.field.enum: is empty: no value could be valid"),
        ({"type": "string", "default": "a", "enum": ["a", 1]}, 'spec.state.properties.field.enum[1]: 1 is not of type "string"'),
        ({"type": "array", "default": []}, "spec.state.properties.field: an array needs `items`, which say what it holds"),
        ({"type": "object", "default": {}}, "spec.state.properties.field: an object needs `properties`, or `additionalProperties` (a schema, or true for any field)"),
        ({"type": "object", "default": {}, "properties": {"a": {"type": "array"}}}, "spec.state.properties.field.properties.a: an array needs `items`, which say what it holds"),
        ({"type": "object", "default": {}, "additionalProperties": True, "required": ["a"]}, "spec.state.properties.field.required: 'a' is not among the properties"),
        ({"type": "string", "format": "date-time", "default": "yesterday"}, 'spec.state.properties.field.default: "yesterday" is not a "date-time"'),
        ({"type": "string", "format": "date-time", "default": "2026-02-30T00:00:00Z"}, 'spec.state.properties.field.default: "2026-02-30T00:00:00Z" is not a "date-time"'),
    ],
)
def test_a_schema_that_cannot_work_is_refused(schema: dict[str, Any], problem: str) -> None:
    assert problem in problems_of(with_state(**schema))


def test_required_names_are_among_the_properties() -> None:
    assert problems_of({"commands": {"Add": {"schema": {"required": ["by"]}}}}) == ["spec.commands.Add.schema.required: 'by' is not among the properties"]


def test_schemas_are_not_nested_without_end() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(30):
        schema = {"type": "array", "items": schema}
    assert [problem for problem in problems_of(with_state(**schema, default=[])) if problem.endswith("schemas are nested more than 8 deep")]


def test_the_number_of_members_fields_and_expressions_is_bounded() -> None:
    assert problems_of({"events": {f"E{i}": {} for i in range(129)}}) == ["spec.events: 129 are more than 128: split the model"]
    fields = {f"f{i}": {"type": "string"} for i in range(129)}
    assert problems_of({"events": {"E": {"schema": {"properties": fields}}}}) == ["spec.events.E.schema.properties: 129 fields are more than 128: group them into objects"]
    guards = [{"rule": "true"}] * 32
    assert problems_of({"commands": {f"C{i}": {"guards": guards} for i in range(16)}}) == ["spec: 512 expressions are more than 500: split the model"]
    long = [{"rule": f"'{'x' * 4000}' == ''"}] * 26
    assert problems_of({"commands": {"C": {"guards": long}}}) == ["spec: 104208 characters of expressions are more than 100000: split the model"]


@pytest.mark.parametrize("depth", range(24, 36))
def test_nesting_is_refused_exactly_where_it_would_not_compile(depth: int) -> None:
    spec = with_set({"count": "(" * depth + "state.count + 1" + ")" * depth, "rate": "state.rate + 1.0"})
    problems = problems_of(spec)
    if problems:
        assert depth > 28
        assert all(problem.startswith("spec.events.Changed.set") and ("nested" in problem or "recursion" in problem) for problem in problems)
    else:
        model = compile_model("deep", ActorModelSpec.model_validate(spec))
        assert model.apply(model.initial_state(), "Changed", b"{}", time="", version=1)["count"] == 1


def test_problems_sort_by_the_value_of_their_numbers() -> None:
    paths = ["a.b[10]", "a.b[2]", "a", "a.b"]
    assert [problem.path for problem in sorted((Problem(path, "m") for path in paths), key=Problem.sort_key)] == ["a", "a.b", "a.b[2]", "a.b[10]"]
