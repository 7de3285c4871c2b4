"""What holds for every model, state and command, not only for those that somebody thought of."""

from __future__ import annotations

import copy
import json
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aether_api.errors import CommandFailed, EventInvalid
from aether_api.v1alpha1 import ActorModelSpec
from aether_model.advance import advance
from aether_model.cel import CelError, CelEvaluationError, Environment
from aether_model.cel_types import BOOL, DYN, INT, STRING
from aether_model.check import check_model
from aether_model.compile import compile_model
from aether_model.model import CommandInput, Emitted, State
from aether_model.variables import variables_of

pytestmark = pytest.mark.slow

TIME = "2026-07-01T12:00:00.000000Z"

# Each example compiles a whole model, which takes milliseconds; what takes long is a machine with other work.
slow = settings(max_examples=60)
quick = settings(max_examples=100)

MODEL = compile_model(
    "cart",
    ActorModelSpec.model_validate(
        {
            "state": {
                "properties": {
                    "lines": {"type": "array", "default": [], "items": {"type": "object", "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}}}},
                    "tags": {"type": "object", "additionalProperties": {"type": "string"}, "default": {}},
                    "total": {"type": "number", "default": 0},
                    "note": {"type": "string", "nullable": True, "default": None},
                }
            },
            "commands": {
                "Add": {
                    "schema": {
                        "required": ["sku"],
                        "properties": {"sku": {"type": "string"}, "count": {"type": "integer", "default": 1}, "price": {"type": "number"}, "note": {"type": "string"}},
                    },
                    "guards": [{"rule": "command.count * 2 > 0", "reason": "Empty"}, {"rule": "size(state.lines) < 4", "reason": "Full"}],
                    "emits": [{"event": "Added", "with": {"sku": "command.sku", "count": "command.count", "price": "command.price", "note": "command.note"}}],
                }
            },
            "events": {
                "Added": {
                    "schema": {
                        "required": ["sku", "count"],
                        "properties": {"sku": {"type": "string"}, "count": {"type": "integer"}, "price": {"type": "number"}, "note": {"type": "string"}},
                    },
                    "set": {
                        "lines": "state.lines + [{'sku': event.sku, 'count': event.count}]",
                        "total": "state.total + (event.price == null ? 0.0 : double(event.price) * double(event.count))",
                        "note": "event.note",
                    },
                }
            },
        }
    ),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(st.characters(codec=None), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
payloads: st.SearchStrategy[dict[str, object]] = st.fixed_dictionaries(
    {},
    optional={
        "sku": st.text(max_size=5) | json_values,
        "count": st.integers(-(2**63), 2**63 - 1) | json_values,
        "price": st.floats() | st.integers(-5, 5) | json_values,
        "note": st.text(max_size=5),
        "other": json_values,
    },
)


def frozen(value: object) -> str:
    return repr(value)


@quick
@given(st.lists(payloads, max_size=6))
def test_deciding_is_deterministic_changes_nothing_and_gives_json(commands: list[dict[str, object]]) -> None:
    state: State = MODEL.initial_state()
    for version, payload in enumerate(commands):
        command = CommandInput("Add", json.dumps(payload).encode(), "a", version, TIME)
        before = frozen(state)
        try:
            first, second = MODEL.decide(state, command), MODEL.decide(state, command)
            after = advance(MODEL, state, command, event_time=TIME)
        except CommandFailed:
            assert frozen(state) == before
            continue
        assert first == second == after.decision
        assert frozen(state) == before
        state = after.state
        assert MODEL.decode_state(MODEL.encode_state(state)) == state


@quick
@given(st.lists(payloads, max_size=6))
def test_what_was_decided_replays_from_storage_to_the_same_state(commands: list[dict[str, object]]) -> None:
    live: State = MODEL.initial_state()
    replayed: State = MODEL.initial_state()
    version = 0
    for payload in commands:
        try:
            after = advance(MODEL, live, CommandInput("Add", json.dumps(payload).encode(), "a", version, TIME), event_time=TIME)
        except CommandFailed:
            continue
        for event in after.decision.events if isinstance(after.decision, Emitted) else ():
            version += 1
            old = copy.deepcopy(replayed)
            new = MODEL.apply(replayed, event.type, event.data, time=TIME, version=version)
            assert replayed == old
            replayed = new
        live = after.state
        assert replayed == live


@quick
@given(st.dictionaries(st.sampled_from(["sku", "count", "price", "note", "x"]), json_values, max_size=5))
def test_a_stored_event_is_applied_or_invalid_and_nothing_else(data: dict[str, object]) -> None:
    state = MODEL.initial_state()
    try:
        MODEL.encode_state(MODEL.apply(state, "Added", json.dumps(data).encode(), time=TIME, version=1))
    except EventInvalid:
        pass
    assert state == MODEL.initial_state()


names = st.sampled_from(["a", "b", "time", "in", "type", "A", "Made", "x-y", "", "a.b", "\0", "ü", "x" * 70]) | st.text(max_size=5)

schemas: st.SearchStrategy[Any] = st.deferred(
    lambda: st.fixed_dictionaries(
        {"type": st.sampled_from(["string", "integer", "number", "boolean", "array", "object"])},
        optional={
            "default": json_values,
            "nullable": st.booleans(),
            "enum": st.lists(json_values, max_size=2),
            "format": st.just("date-time"),
            "minimum": st.floats(),
            "maximum": st.floats(),
            "minLength": st.integers(0, 2**70),
            "maxItems": st.integers(0, 5),
            "pattern": st.sampled_from(["^a+$", "(", "(?=a)", "\\"]),
            "items": schemas,
            "properties": st.dictionaries(names, schemas, max_size=2),
            "required": st.lists(names, max_size=2),
            "additionalProperties": st.booleans() | schemas,
        },
    )
)
sources = st.sampled_from(
    ["state.a", "command.a", "event.a + 1", "state.b == command.b", "event.time", "true", "1", "'x'", "null", "[state.a]", "{'a': 1}", "a b", "has(state.a)", "1 / 0", "'a\nb'"]
) | st.lists(
    st.sampled_from([*"().,?:+-*/!=<>&|[]{}'01 \n\\#", "map(", "has(", "event.a", "state.a", "command.a", "//", '"', "in", "é", "\0", "\u2028"]), min_size=1, max_size=25
).map("".join)
fields = st.fixed_dictionaries({}, optional={"properties": st.dictionaries(names, schemas, max_size=3), "required": st.lists(names, max_size=2)})
members = st.sampled_from(["Make", "Made", "Do"]) | names
specs = st.fixed_dictionaries(
    {},
    optional={
        "state": st.fixed_dictionaries({"properties": st.dictionaries(names, schemas, max_size=3)}),
        "commands": st.dictionaries(
            members,
            st.fixed_dictionaries(
                {},
                optional={
                    "schema": fields,
                    "guards": st.lists(st.fixed_dictionaries({"rule": sources}, optional={"messageExpression": sources, "reason": st.sampled_from(["Busy", "Mine"])}), max_size=2),
                    "reminders": st.lists(
                        st.fixed_dictionaries(
                            {},
                            optional={
                                "set": st.just("later"),
                                "cancel": st.just("later"),
                                "command": st.sampled_from(["Make", "Do"]),
                                "with": st.dictionaries(names, sources, max_size=2),
                                "at": sources,
                                "after": sources,
                                "cron": st.sampled_from(["@daily", "0 0 9 * * MON"]) | st.text("0123456789*/,-? @aeJANmon", min_size=1, max_size=20),
                                "zone": st.sampled_from(["UTC", "Europe/Berlin", "a/../b", "é"]),
                                "when": sources,
                            },
                        ),
                        max_size=1,
                    ),
                    "emits": st.lists(
                        st.fixed_dictionaries({"event": st.sampled_from(["Made", "Gone"])}, optional={"when": sources, "with": st.dictionaries(names, sources, max_size=2)}),
                        max_size=2,
                    ),
                },
            ),
            max_size=2,
        ),
        "events": st.dictionaries(members, st.fixed_dictionaries({}, optional={"schema": fields, "set": st.dictionaries(names, sources, max_size=2)}), max_size=2),
    },
)


@slow
@given(specs)
def test_checking_ends_with_problems_or_a_model_that_compiles(content: dict[str, Any]) -> None:
    spec = ActorModelSpec.model_validate(content)
    problems = check_model(spec)
    assert [str(problem) for problem in problems] == [str(problem) for problem in check_model(spec)]
    assert len(set(problems)) == len(problems)
    if not problems:
        orjson.dumps(compile_model("any", spec).initial_state())


@quick
@given(sources)
def test_any_text_is_an_expression_or_an_error_with_words(source: str) -> None:
    environment = Environment(variables_of("command", {"a": INT, "b": STRING}, {"a": DYN}))
    try:
        outcome = f"gave {environment.compile(source).value(environment.bind({}))}"
    except CelError as error:
        outcome = error.message
    except CelEvaluationError as error:
        outcome = str(error)
    except KeyError:
        outcome = "a variable has no value"
        assert any(name in source for name in environment.variables)
    assert outcome


operands = st.sampled_from(["state.a", "state.b", "state.s", "state.t", "state.f", "0", "7", "9223372036854775807", "'x'", '"y"', "''"])
binary = st.tuples(operands, st.sampled_from(["+", "-", "<", "<=", ">", ">=", "==", "!="]), operands).map(" ".join)
integers = st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9) | st.sampled_from([-(2**63), 2**63 - 1])
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=2) | st.sampled_from(["x", "y"])


@settings(max_examples=400)
@given(binary | st.sampled_from(["!state.f", " ! state.f ", "!state.a"]), integers, integers, texts, texts, st.booleans())
def test_what_runs_without_the_engine_gives_what_the_engine_gives(source: str, a: int, b: int, s: str, t: str, f: bool) -> None:
    environment = Environment({"state.a": INT, "state.b": INT, "state.s": STRING, "state.t": STRING, "state.f": BOOL})
    try:
        short, whole = environment.compile(source), environment.compile(f"({source})")
    except CelError:
        return
    assert whole.shortcut is None
    assert short.type == whole.type
    outcomes = list[object]()
    for expression in (short, whole):
        activation = environment.bind({"state.a": a, "state.b": b, "state.s": s, "state.t": t, "state.f": f})
        try:
            outcomes.append(repr(expression.value(activation)))
            if expression.type == BOOL:
                outcomes[-1] = (outcomes[-1], expression.holds(activation))
        except CelEvaluationError as exc:
            outcomes.append(str(exc))
    assert outcomes[0] == outcomes[1]


def test_simple_expressions_do_run_without_the_engine() -> None:
    environment = Environment({"state.a": INT, "command.b": INT, "state.s": STRING, "state.f": BOOL})
    simple = ["state.a + command.b", "state.a >= command.b", "state.a - 1", "1+state.a", "state.s == 'open'", "!state.f", "0 < state.a"]
    assert [source for source in simple if environment.compile(source).shortcut is None] == []
    whole = ["state.s < 'a'", "state.s + 'a'", "state.a + command.b + 1", "state.a * 2", "(state.a + 1)", "state.a + 0x10", "state.f == state.f", "state.s == 'a\\n'"]
    assert [source for source in whole if environment.compile(source).shortcut is not None] == []


@quick
@given(json_values)
def test_any_default_is_refused_or_kept_as_json_keeps_it(default: object) -> None:
    spec = ActorModelSpec.model_validate({"state": {"properties": {"a": {"type": "object", "additionalProperties": True, "default": default}}}})
    if not check_model(spec):
        assert compile_model("any", spec).initial_state() == {"a": json.loads(orjson.dumps(default))}
