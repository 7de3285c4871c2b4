"""Expressions: what compiles, what the author is told when it does not, and what comes back."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from aether_model.cel import CelError, CelEvaluationError, CompiledExpression, Environment
from aether_model.cel_types import BOOL, DOUBLE, DYN, INT, STRING, TIMESTAMP, CelType, list_of, map_of, parse_type
from aether_model.objects import ObjectExpression

VARIABLES = {
    "state.balance": INT,
    "state.rate": DOUBLE,
    "state.open": BOOL,
    "state.owner": STRING,
    "state.items": list_of(DYN),
    "state.tags": map_of(DYN),
    "command.note": DYN,
    "event.time": TIMESTAMP,
}
VALUES: dict[str, object] = {
    "state.balance": 5,
    "state.rate": 0.0,
    "state.open": True,
    "state.owner": "ann",
    "state.items": [1, {"a": [None]}],
    "state.tags": {"k": 1},
    "command.note": None,
    "event.time": datetime(2026, 7, 1, 12, tzinfo=UTC),
}


@pytest.fixture(scope="module")
def environment() -> Environment:
    return Environment(VARIABLES)


def error_of(environment: Environment, source: str, expected: CelType | None = None) -> CelError:
    with pytest.raises(CelError) as caught:
        environment.compile(source, expected)
    return caught.value


def value_of(environment: Environment, source: str, **changes: object) -> object:
    values = VALUES | {name.replace("__", "."): value for name, value in changes.items()}
    return environment.compile(source).value(environment.bind(values))


def test_a_misspelt_variable_is_named_with_its_place_and_the_nearest_known_one(environment: Environment) -> None:
    error = error_of(environment, "true &&\n state.balanec > 1")
    assert error.message == "undeclared reference to 'state.balanec'; did you mean 'state.balance'?"
    assert (error.line, error.column) == (2, 7)


def test_every_undeclared_name_is_reported_at_once(environment: Environment) -> None:
    assert len(error_of(environment, "nope + state.zzz").findings) == 2


def test_a_name_like_no_other_lists_what_is_known(environment: Environment) -> None:
    assert "known here: command.note, event.time, state.balance" in error_of(environment, "qqqq").message


@pytest.mark.parametrize(
    ("source", "hint"),
    [
        ("balance > 1", "did you mean 'state.balance'?"),
        ("command.balance > 1", "did you mean 'state.balance'?"),
        ("state == 1", "it is no value by itself, name one of its fields, such as state.balance"),
    ],
)
def test_a_forgotten_or_wrong_root_is_understood(environment: Environment, source: str, hint: str) -> None:
    assert error_of(environment, source).message.endswith(hint)


def test_there_is_no_clock(environment: Environment) -> None:
    assert error_of(environment, "now()").message.startswith("there is no function 'now': use command.time or event.time")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("state.owner > 1", "'>' cannot be applied to (string, int)"),
        ("state.rate + 1", "'+' cannot be applied to (double, int): convert with double(...) or int(...)"),
        ("state.owner.startsWith(1)", "'startsWith' cannot be applied to (string, int)"),
        ("1 +", "syntax error: the expression ends too early"),
        ("", "syntax error: the expression ends too early"),
        ("state.balance.cents", "expression of type 'int' cannot be the operand of a select operation"),
        ("+".join(["1"] * 40), "it is nested too deeply; more than 32 operands of one '+' count as nesting, parentheses around halves help"),
        ("1" * 5000, "5000 characters are more than 4096"),
    ],
)
def test_the_message_says_what_is_wrong(environment: Environment, source: str, message: str) -> None:
    assert error_of(environment, source).message == message


@pytest.mark.parametrize("source", ["has(state.balance)", "has( command . note )"])
def test_has_on_a_variable_is_refused_and_null_is_recommended(environment: Environment, source: str) -> None:
    assert "!= null" in error_of(environment, source).message


def test_has_on_a_key_of_a_map_works(environment: Environment) -> None:
    assert value_of(environment, "has(state.tags.k) && !has(state.tags.z)") is True


TAGS = {f"k{number}": number for number in (7, 2, 9, 4, 1, 8, 3, 6, 5, 0)}
"""Their order in the engine is another one in each process."""


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("state.tags.map(k, k)", sorted(TAGS)),
        ("state.tags . filter(k, k != 'k0').map(k, state.tags[k])", list(range(1, 10))),
        ("state.tags.map(k, state.tags[k] > 6, k + '!')", ["k7!", "k8!", "k9!"]),
        ("command.note.map(k, k)", sorted(TAGS)),
        ("[command.note].map(inner, inner.map(k, k)) // .map(k, k)", [sorted(TAGS)]),
        ("{3: 'c', 1: 'a', 2: 'b'}.map(k, k) + [state.tags.size()]", [1, 2, 3, 10]),
        ("state.items.map(i, i)", [5, 3, 4]),
        ("state.items.filter(i, i > 3) + command.note.filter(k, k > 'k8')", [5, 4, "k9"]),
        ("'.map(k, k)'", ".map(k, k)"),
    ],
)
def test_macros_go_through_a_map_in_the_order_of_its_keys(environment: Environment, source: str, value: object) -> None:
    """Else a list in a state would be another one whenever it is replayed."""
    changes = {"state__tags": TAGS, "command__note": TAGS, "state__items": [5, 3, 4]}
    assert value_of(environment, source, **changes) == value
    values = VALUES | {name.replace("__", "."): value for name, value in changes.items()}
    several = ObjectExpression(environment, {"one": environment.compile(source), "other": environment.compile("state.tags.map(k, [k])")})
    assert several.evaluate(environment.bind(values)) == {"one": value, "other": [[key] for key in sorted(TAGS)]}


def test_the_type_of_what_goes_through_a_map_is_that_of_what_was_written(environment: Environment) -> None:
    assert environment.compile("state.tags.map(k, k)").type == list_of(STRING)
    assert environment.compile("state.tags.filter(k, true)[0]", STRING).type == STRING


@pytest.mark.parametrize("source", ["state.?balance", "state.items[?0]"])
def test_optional_values_are_refused_and_null_is_recommended(environment: Environment, source: str) -> None:
    assert "compare it: command.note == null" in error_of(environment, source).message


@pytest.mark.parametrize(
    "source",
    [
        "['x']" + ".map(a, [a, a, a, a, a, a, a, a, a, a])" * 9,
        "['x']" + ".map(a, a + a + a + a + a)" * 3,
        "[1].map(a, [1].map(b, [1].map(c, [a, a, a, a, a, b, b, b, b, b, c, c, c, c, c])))",
        "'a'.replace('a', 'bb').replace('b', 'cc').replace('c', 'dd')",
    ],
)
def test_expressions_that_multiply_their_input_are_refused(environment: Environment, source: str) -> None:
    message = error_of(environment, source).message
    assert "multiply" in message or "replace may be called" in message


@pytest.mark.parametrize("source", ["'has(state.balance) .? ' + \"x\"", "1 // has(state.balance)", r"r'\.?'", "'''a' has(state.balance) '''", r"'\' has(state.open)'"])
def test_strings_and_comments_are_not_linted(environment: Environment, source: str) -> None:
    assert isinstance(environment.compile(source), CompiledExpression)


@pytest.mark.parametrize(
    ("source", "message", "place"),
    [
        ("event.time + duration(\n '3d')", "duration fails on '3d': String to Duration conversion failed; write it like '72h', '1h30m' or '500ms'", (2, 2)),
        ('event.time < timestamp("2026-13-01")', "timestamp fails on \"2026-13-01\": String to Timestamp conversion failed; write it like '2026-01-31T09:00:00Z'", (1, 24)),
        ("state.owner.matches('[')", "matches fails on '[': invalid regular expression: missing ]: [", (1, 21)),
        ("matches(state.owner + ')', r'(?=a)')", "matches fails on r'(?=a)': invalid regular expression: invalid perl operator: (?=", (1, 28)),
    ],
)
def test_a_constant_that_fails_with_every_value_is_refused_at_its_place(environment: Environment, source: str, message: str, place: tuple[int, int]) -> None:
    error = error_of(environment, source)
    assert (error.message, (error.line, error.column)) == (message, place)


@pytest.mark.parametrize(
    "source",
    [
        "event.time + duration('1h30m') < timestamp('2026-01-31T09:00:00Z') // duration('3d')",
        "duration(state.owner) > duration(string(state.balance) + 'd')",
        "timestamp(0) < event.time",
        "state.owner.matches('a' + '[') || state.owner == 'matches(\"[\")'",
        "matches('[', state.owner)",
    ],
)
def test_sound_constants_and_what_only_values_decide_are_taken(environment: Environment, source: str) -> None:
    assert isinstance(environment.compile(source), CompiledExpression)


def test_every_failing_constant_is_reported_at_once(environment: Environment) -> None:
    assert len(error_of(environment, "duration('3d') < duration('4d')").findings) == 2


def test_a_condition_must_be_known_to_be_true_or_false(environment: Environment) -> None:
    assert error_of(environment, "state.balance", BOOL).message == "gives int where true or false (bool) is needed"
    assert error_of(environment, "command.note", BOOL).message.endswith("write command.note == true")
    assert error_of(environment, "state.balance", STRING).message == "gives int where a string is needed: use string(...)"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("state.balance + 9223372036854775807", "integer overflow"),
        ("1 / (state.balance - 5)", "divide by zero"),
        ("1.0 / state.rate", "inf is no number that JSON can hold"),
        ("state.tags['z']", 'Key not found in map : "z"'),
        ("command.note + 1", "No matching overloads found : _+_(null_type, int64)"),
        ("18446744073709551615u", "18446744073709551615 does not fit into 64 bits"),
        ("[duration('1s')]", "a duration is no JSON value: use string(...)"),
        ("{1: 2}", "the key 1 is no string, as JSON needs it: use string(...)"),
        (r"'a\u0000b'", "a string holds the character NUL (\\u0000), which cannot be kept"),
        ("[1, 2].map(a, a + 1)[2]", "Index error: index=2 size=2"),
    ],
)
def test_a_failure_at_run_time_says_why(environment: Environment, source: str, message: str) -> None:
    with pytest.raises(CelEvaluationError) as caught:
        value_of(environment, source)
    assert str(caught.value) == message


def test_a_loop_without_end_runs_out_of_its_budget(environment: Environment) -> None:
    source = "state.items.all(a, state.items.all(b, state.items.all(c, true)))"
    with pytest.raises(CelEvaluationError, match="Iteration budget exceeded"):
        value_of(environment, source, state__items=list(range(200)))


def test_a_result_with_too_many_values_is_refused(environment: Environment) -> None:
    with pytest.raises(CelEvaluationError, match="more than 100000 values"):
        value_of(environment, "[state.items, state.items]", state__items=[0] * 60_000)


def test_a_result_with_too_many_characters_is_refused(environment: Environment) -> None:
    with pytest.raises(CelEvaluationError, match="more than 2097152 characters"):
        value_of(environment, "state.owner + state.owner", state__owner="x" * 1_500_000)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("state.owner", "ann"),
        ("'INVALID_ARGUMENT: no error'", "INVALID_ARGUMENT: no error"),
        ("event.time + duration('1h')", "2026-07-01T13:00:00.000000Z"),
        ("[event.time]", ["2026-07-01T12:00:00.000000Z"]),
        ("event.time", "2026-07-01T12:00:00.000000Z"),
        ("{'a': state.items, 'b': state.rate}", {"a": [1, {"a": [None]}], "b": 0.0}),
        ("'A,b'.lowerAscii().split(',')", ["a", "b"]),
        ("command.note == null ? 'none' : 'some'", "none"),
    ],
)
def test_results_are_json(environment: Environment, source: str, value: object) -> None:
    assert value_of(environment, source) == value


def test_a_condition_that_fails_raises_instead_of_being_false(environment: Environment) -> None:
    with pytest.raises(CelEvaluationError, match="Key not found"):
        environment.compile("state.tags.z == 1", BOOL).holds(environment.bind(VALUES))


def test_an_object_keeps_the_order_of_its_author_and_survives_comments(environment: Environment) -> None:
    sources = {"z": "1 // one", "a": "state.balance", "m": "state.balance + 1", "b": "state.balance * 2"}
    expression = ObjectExpression(environment, {name: environment.compile(source) for name, source in sources.items()})
    assert list(expression.evaluate(environment.bind(VALUES)).items()) == [("z", 1), ("a", 5), ("m", 6), ("b", 10)]


@pytest.mark.parametrize("sources", [{"bad": "1 / (state.balance - 5)"}, {"good": "state.balance + 1", "bad": "1 / (state.balance - 5)"}])
def test_an_object_names_the_field_that_failed(environment: Environment, sources: dict[str, str]) -> None:
    expression = ObjectExpression(environment, {name: environment.compile(source) for name, source in sources.items()})
    with pytest.raises(CelEvaluationError, match="bad: divide by zero"):
        expression.evaluate(environment.bind(VALUES))


def test_a_computed_constant_keeps_its_value(environment: Environment) -> None:
    expression = ObjectExpression(environment, {name: environment.compile(source) for name, source in {"a": "1 + 1", "n": "null", "l": "[1]"}.items()})
    first = expression.evaluate(environment.bind({}))
    assert first == {"a": 2, "n": None, "l": [1]}
    assert expression.evaluate(environment.bind({})) is not first


@pytest.mark.parametrize("signature", ["int", "list<dyn>", "map<string, list<map<string, int>>>"])
def test_types_are_read_as_they_are_written(signature: str) -> None:
    assert str(parse_type(signature)) == signature


def test_what_was_put_in_order_is_compiled_once_more_for_all_of_a_map(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = {f"f{number}": environment.compile("state.tags.map(k, k).filter(k, true)") for number in range(5)}
    engine, compiled = environment._env, list[str]()

    class Counting:
        def compile(self, source: str) -> object:
            compiled.append(source)
            return engine.compile(source)

    monkeypatch.setattr(environment, "_env", Counting())
    environment.compile_map(entries)
    assert len(compiled) == 1
