"""Compiles and evaluates CEL: the only module that knows the engine (cel-cpp through `cel-expr-python`).

Variables are flat and dotted (`state.balance`), never maps: a misspelt field is then an error when the model is applied, and
only what an expression names is converted (measured: 7 us instead of 600 us on a state of 200 items). What the engine does
otherwise than one would hope is hidden here:

- an error at run time comes back as a value of type ERROR, or as a RuntimeError where a budget ran out: both become
  `CelEvaluationError`;
- a string from Python ends at its first NUL character, without a word: results that hold one are refused here, and `fields`
  refuses them in commands and events, so none ever reaches the engine;
- results may be what JSON has no word for: timestamps become RFC 3339, all else is refused;
- a map is a hash table with another order in each process, which `map` and `filter` would give on to a list, and so to a state that no replay gives
  again: they go through the keys in order here.

An expression of one simple operation never reaches the engine (`shortcuts`).

The cheapest way to evaluate (measured, us): one activation for all expressions of a command (2.6), then 2.1 for each; with
`data=` each evaluation costs 3.5 to 5. An expression that only names a variable, as most fields of events do, never
reaches the engine.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol, cast

import orjson
from cel_expr_python import cel as engine
from cel_expr_python.ext.ext_strings import ExtStrings

from aether_api.errors import PermanentError
from aether_api.v1alpha1.actor_model import EXPRESSION_LENGTH_MAX
from aether_model.cel_lint import Finding, LiteralArgument, lint_source, literal_arguments, ordered_macros, position_of, words_of
from aether_model.cel_types import BOOL, DURATION, STRING, TIMESTAMP, CelType, parse_type
from aether_model.shortcuts import INT64_MAX, INT64_MIN, Shortcut, find_shortcut

RESULT_ELEMENTS_MAX: Final = 100_000
"""Values in one result, nested ones included: a commit of them would not fit into one message of NATS."""

RESULT_CHARACTERS_MAX: Final = 2 * 1024 * 1024
"""Characters of all strings of one result: a quarter of NATS' `max_payload`, which is the largest commit."""

NAMES_SHOWN_MAX: Final = 12
"""Known variables that a message lists: what fits on two lines of a terminal."""

KEYS: Final = "_keys"
"""Member function that stands before a macro which may go through a map: the keys of one in order, and a list as it is."""

MAP_KEYS: Final = "_map_keys"
"""The same for maps alone: where it does not compile the macro goes through a list, and nothing is put before it."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ERROR_LINE = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)")
_STATUS_WORD = re.compile(r"^[A-Z_]+: ")
_UNDECLARED = re.compile(r"undeclared reference to '([^']*)'")
_NO_OVERLOAD = re.compile(r"found no matching overload for '([^']*)' applied to '\((.*)\)'")
_FROM_STRING: Final = (TIMESTAMP, DURATION)
_FORMS: Final = {"duration": "; write it like '72h', '1h30m' or '500ms'", "timestamp": "; write it like '2026-01-31T09:00:00Z'"}
_CONVERSIONS: Final = {"duration": "string(...)", "uint": "int(...)", "bytes": "base64 text", "type": "a string"}


class _Value(Protocol):
    def value(self) -> object: ...
    def plain_value(self) -> object: ...
    def type(self) -> object: ...


class _Program(Protocol):
    def eval(self, activation: object) -> _Value: ...
    def return_type(self) -> object: ...


class _Engine(Protocol):
    def Activation(self, values: Mapping[str, object]) -> object: ...  # the engine's own spelling
    def compile(self, source: str) -> _Program: ...


class Activation:
    """Values of variables, handed to the engine once, and only if an expression needs it.

    Attributes:
        values: by flat name; lists and maps are read in place, so nobody may change them meanwhile.
    """

    __slots__ = ("_bound", "_env", "values")

    def __init__(self, env: _Engine, values: dict[str, object]) -> None:
        self.values = values
        self._env = env
        self._bound: object = None

    def bound(self) -> object:
        """Return what the engine evaluates against."""
        if self._bound is None:
            self._bound = self._env.Activation(self.values)
        return self._bound


class CelError(PermanentError):
    """An expression that does not compile.

    Attributes:
        findings: every thing that is wrong, in the order of the source.
    """

    def __init__(self, source: str, findings: tuple[Finding, ...]) -> None:
        super().__init__(f"{source!r}: " + "; ".join(finding.message for finding in findings))
        self.source = source
        self.findings = findings

    @property
    def message(self) -> str:
        """What is wrong first."""
        return self.findings[0].message

    @property
    def line(self) -> int:
        """Line of the first finding, from 1; 0 if the engine named no place."""
        return self.findings[0].line

    @property
    def column(self) -> int:
        """Column of the first finding, from 1; 0 if the engine named no place."""
        return self.findings[0].column


class CelEvaluationError(PermanentError):
    """An expression that failed on the values it was given, such as an overflow or a division by zero."""


class CompiledExpression:
    """An expression ready to run.

    Attributes:
        source: what runs: the author's text, with the keys of maps put in order.
        type: what the checker knows of its result.
        names: flat variables that it may use (never too few).
        copied: the variable, if the expression is nothing but its name and the variable holds JSON.
        shortcut: gives the same without the engine, for the simplest expressions.
    """

    __slots__ = ("_eval", "copied", "names", "shortcut", "source", "type")

    def __init__(self, source: str, program: _Program, kind: CelType, names: frozenset[str], shortcut: Shortcut | None) -> None:
        self.source = source
        self.names = names
        self.type = kind
        self.copied = source.strip() if source.strip() in names and self.type != TIMESTAMP else None
        self.shortcut = shortcut
        self._eval = program.eval

    def holds(self, activation: Activation) -> bool:
        """Evaluate a condition.

        Raises:
            CelEvaluationError: it failed, or gave something else than true or false.
        """
        if self.shortcut is not None:
            return self.shortcut(activation.values) is True
        value = self.run(activation).value() if self.copied is None else activation.values[self.copied]
        if value is True or value is False:
            return value
        raise CelEvaluationError(_readable(str(value)) if isinstance(value, str) else f"gave {value!r} where true or false is needed")

    def value(self, activation: Activation) -> object:
        """Evaluate to what JSON can hold, bounded in size; a copied variable is shared.

        Raises:
            CelEvaluationError: it failed, is too large, or is no JSON value.
        """
        if self.copied is not None:
            return activation.values[self.copied]
        if self.shortcut is not None:
            try:
                return self.shortcut(activation.values)
            except OverflowError as exc:
                raise CelEvaluationError(str(exc)) from exc
        result = self.run(activation)
        value = result.plain_value()
        if value is True or value is False or (type(value) is int and value <= INT64_MAX):
            return value
        if type(value) is str and str(result.type()) == "ERROR":
            raise CelEvaluationError(_readable(value))
        return to_json(value)

    def moment(self, activation: Activation) -> datetime:
        """Evaluate an expression of type timestamp.

        Raises:
            CelEvaluationError: it failed.
        """
        value = self.run(activation).value()
        if isinstance(value, datetime):
            return value
        raise CelEvaluationError(_readable(str(value)))

    def duration(self, activation: Activation) -> timedelta:
        """Evaluate an expression of type duration.

        Raises:
            CelEvaluationError: it failed.
        """
        value = self.run(activation).value()
        if isinstance(value, timedelta):
            return value
        raise CelEvaluationError(_readable(str(value)))

    def run(self, activation: Activation) -> _Value:
        """Evaluate to the engine's own value, which may be of type ERROR.

        Raises:
            CelEvaluationError: a budget of the engine ran out.
        """
        try:
            return self._eval(activation.bound())
        except RuntimeError as exc:
            raise CelEvaluationError(_readable(str(exc))) from exc


class Environment:
    """Compiles expressions that may use the given variables."""

    __slots__ = ("_env", "_roots", "variables")

    def __init__(self, variables: Mapping[str, CelType]) -> None:
        """Declare variables by their flat names, such as `state.balance`."""
        self.variables = dict(variables)
        self._roots = frozenset(name.partition(".")[0] for name in variables)
        types = {name: engine.Type(str(kind)) for name, kind in variables.items()}
        self._env = cast("_Engine", engine.NewEnv(variables=types, extensions=[ExtStrings()], functions=_build_key_functions()))

    def compile(self, source: str, expected: CelType | None = None) -> CompiledExpression:
        """Compile one expression, whose result must have the `expected` type if one is given.

        Raises:
            CelError: it does not compile, is refused by the lint, has another type, or holds a constant that fails with every value.
        """
        if len(source) > EXPRESSION_LENGTH_MAX:
            raise CelError(source[:40], (Finding(f"{len(source)} characters are more than {EXPRESSION_LENGTH_MAX}"),))
        if linted := lint_source(source, self._roots):
            raise CelError(source, tuple(linted))
        compiled = self._compile(source, expected)
        if failing := [Finding(reason, *position_of(source, argument.offset)) for argument in literal_arguments(source) if (reason := self._why_failing(argument))]:
            raise CelError(source, tuple(failing))
        return compiled

    def compile_map(self, entries: Mapping[str, CompiledExpression]) -> CompiledExpression:
        """Compile expressions of this environment into one map literal, so that one evaluation gives all of them.

        Raises:
            CelError: the literal is nested deeper than the engine allows, though no entry is.
        """
        # A line break ends a comment at the end of an entry, which would hide the closing parenthesis.
        literal = ", ".join(f"'{name}': ({expression.source}\n)" for name, expression in entries.items())
        return self._compile(f"{{{literal}}}", None, is_ordered=True)

    def bind(self, values: dict[str, object]) -> Activation:
        """Take values for all expressions that look at them."""
        return Activation(self._env, values)

    def _compile(self, source: str, expected: CelType | None, *, is_ordered: bool = False) -> CompiledExpression:
        try:
            program = self._env.compile(source)
        except RuntimeError as exc:
            raise CelError(source, tuple(self._findings(source, str(exc)))) from exc
        words = words_of(source)
        names = frozenset(name for name in self.variables if name.rpartition(".")[2] in words)
        kind = parse_type(str(program.return_type()))
        ordered = (source, program) if is_ordered else self._order_keys(source, program)
        compiled = CompiledExpression(*ordered, kind, names, find_shortcut(source, self.variables))
        if expected is not None and compiled.type != expected:
            raise CelError(source, (Finding(_wrong_type(source, compiled.type, expected)),))
        return compiled

    def _order_keys(self, source: str, program: _Program) -> tuple[str, _Program]:
        """Return source and program with the keys of each map in order that a macro makes a list of; what is known to be a list stays."""
        for offset in ordered_macros(source):
            with suppress(RuntimeError):  # it is no map
                self._env.compile(f"{source[:offset]}.{MAP_KEYS}(){source[offset:]}")
                ordered = f"{source[:offset]}.{KEYS}(){source[offset:]}"
                source, program = ordered, self._env.compile(ordered)
        return source, program

    def _why_failing(self, argument: LiteralArgument) -> str:
        """Return why a literal can never be what its function takes, by the engine's own word; nothing for a sound one."""
        call = f"''.matches({argument.literal})" if argument.function == "matches" else f"{argument.function}({argument.literal})"
        try:
            result = self._compile(call, None).run(self.bind({}))
            reason = _readable(str(result.value())) if str(result.type()) == "ERROR" else ""
        except CelEvaluationError as exc:
            reason = str(exc)
        return f"{argument.function} fails on {argument.literal}: {reason}{_FORMS.get(argument.function, '')}" if reason else ""

    def _findings(self, source: str, text: str) -> Iterable[Finding]:
        """Turn the engine's report into findings; one syntax error often makes others, so only the first of these counts."""
        matches = [(int(line), int(column), message) for line, column, message in _ERROR_LINE.findall(text)]
        if not matches:
            return [Finding(_readable(text))]
        if "Syntax error" in matches[0][2]:
            matches = matches[:1]
        findings = [Finding(self._explain(source, line, column, message), max(line, 0), max(column, 0)) for line, column, message in matches]
        return list(dict.fromkeys(findings))

    def _explain(self, source: str, line: int, column: int, message: str) -> str:
        if undeclared := _UNDECLARED.search(message):
            name = undeclared.group(1)
            if _character_at(source, line, column) == "(":
                return f"there is no function '{name}'" + (": use command.time or event.time, so that replay gives the same" if name == "now" else "")
            return f"undeclared reference to '{name}'{_nearest(name, self.variables)}"
        if overload := _NO_OVERLOAD.search(message):
            return _explain_overload(overload.group(1), overload.group(2))
        if "recursion" in message:
            return "it is nested too deeply; more than 32 operands of one '+' count as nesting, parentheses around halves help"
        return _readable(message)


def to_json(value: object) -> object:
    """Copy an engine's result as JSON values, bounded in size.

    Raises:
        CelEvaluationError: it is too large, or holds what JSON cannot.
    """
    return _Budget().copy(value)


def encode_json(values: dict[str, object]) -> bytes:
    """Encode results as JSON.

    Raises:
        CelEvaluationError: they are nested too deeply.
    """
    try:
        return orjson.dumps(values)
    except TypeError as exc:
        raise CelEvaluationError(f"a value cannot be written as JSON: {exc}") from exc


def format_time(moment: datetime) -> str:
    """Write a moment as RFC 3339 in UTC with microseconds, so that equal moments are equal strings and sort by time."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f").zfill(26) + "Z"


def _build_key_functions() -> list[engine.FunctionDecl]:
    lists, maps = engine.Type.List(engine.Type.DYN), engine.Type.Map(engine.Type.DYN, engine.Type.DYN)
    of_map = engine.Overload(MAP_KEYS, lists, [maps], True, _sort_keys)
    either = [engine.Overload(f"{KEYS}_of_map", lists, [maps], True, _sort_keys), engine.Overload(f"{KEYS}_of_list", lists, [lists], True, list)]
    return [engine.FunctionDecl(MAP_KEYS, [of_map]), engine.FunctionDecl(KEYS, either)]


def _sort_keys(values: dict[str | int | bool, object]) -> list[str | int | bool]:
    return sorted(values, key=lambda key: (type(key).__name__, key))


class _Budget:
    """What one result may still use."""

    __slots__ = ("characters", "elements")

    def __init__(self) -> None:
        self.elements = RESULT_ELEMENTS_MAX
        self.characters = RESULT_CHARACTERS_MAX

    def copy(self, value: object) -> object:
        self.elements -= 1
        if self.elements < 0:
            raise CelEvaluationError(f"the result has more than {RESULT_ELEMENTS_MAX} values")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if isinstance(value, int):
            return _checked_int(value)
        if isinstance(value, str):
            return self.spend(value)
        if isinstance(value, float):
            return _checked_float(value)
        if isinstance(value, dict):
            return {self.key(name): self.copy(item) for name, item in cast("dict[object, object]", value).items()}
        if isinstance(value, list):
            return [self.copy(item) for item in cast("list[object]", value)]
        return _copy_special(value)

    def key(self, name: object) -> str:
        if not isinstance(name, str):
            raise CelEvaluationError(f"the key {name!r} is no string, as JSON needs it: use string(...)")
        return self.spend(name)

    def spend(self, text: str) -> str:
        self.characters -= len(text)
        if self.characters < 0:
            raise CelEvaluationError(f"the result has more than {RESULT_CHARACTERS_MAX} characters")
        if "\0" in text:
            raise CelEvaluationError("a string holds the character NUL (\\u0000), which cannot be kept")
        return text


def _checked_int(value: int) -> int:
    if INT64_MIN <= value <= INT64_MAX:
        return value
    raise CelEvaluationError(f"{value} does not fit into 64 bits")


def _checked_float(value: float) -> float:
    if math.isfinite(value):
        return value
    raise CelEvaluationError(f"{value} is no number that JSON can hold")


def _copy_special(value: object) -> str:
    if isinstance(value, datetime):
        return format_time(value)
    name = "duration" if isinstance(value, timedelta) else "bytes" if isinstance(value, bytes | bytearray) else "type"
    raise CelEvaluationError(f"a {name} is no JSON value: use {_CONVERSIONS[name]}")


def _readable(text: str) -> str:
    """Strip the engine's status words and its lists of tokens, which help nobody."""
    line = _STATUS_WORD.sub("", text).partition("\n")[0].partition(" expecting {")[0].removesuffix(" [INVALID_ARGUMENT]")
    if line.endswith("mismatched input '<EOF>'"):
        return "syntax error: the expression ends too early"
    return line.replace("Syntax error: ", "syntax error: ")


def _character_at(source: str, line: int, column: int) -> str:
    """Return the character at a place that the engine named, or nothing if there is none."""
    lines = source.split("\n")
    return lines[line - 1][column - 1 : column] if 0 < line <= len(lines) and column > 0 else ""


def _nearest(name: str, known: Iterable[str]) -> str:
    """Say what may have been meant: a field of the same root before one of another, since roots are rarely misspelt."""
    root, _, field = name.rpartition(".")
    names = sorted(known)
    own = [candidate for candidate in names if candidate.partition(".")[0] == (root or name)]
    if own and not root:
        return f": it is no value by itself, name one of its fields, such as {own[0]}"
    close = _with_similar_field(field, own) or _with_similar_field(field, names)
    if close:
        return "; did you mean " + " or ".join(f"'{candidate}'" for candidate in close) + "?"
    shown = [*names[:NAMES_SHOWN_MAX], *(["..."] if len(names) > NAMES_SHOWN_MAX else [])]
    return "; known here: " + (", ".join(shown) or "nothing")


def _with_similar_field(field: str, names: list[str]) -> list[str]:
    fields = {name.partition(".")[2] for name in names}
    return [name for match in difflib.get_close_matches(field, fields, n=3, cutoff=0.7) for name in names if name.partition(".")[2] == match]


def _explain_overload(function: str, operands: str) -> str:
    symbol = {"!_": "!", "-_": "-", "_?_:_": "?:", "@in": "in", "_[_]": "[]"}.get(function, function.strip("_"))
    hint = ": convert with double(...) or int(...)" if {"int", "double"} <= set(operands.split(", ")) else ""
    return f"'{symbol}' cannot be applied to ({operands}){hint}"


def _wrong_type(source: str, given: CelType, expected: CelType) -> str:
    wanted = "true or false (bool)" if expected == BOOL else f"a {expected}"
    if given.name != "dyn":
        hint = f": use {expected}(...)" if expected == STRING or (given == STRING and expected in _FROM_STRING) else ""
        return f"gives {given} where {wanted} is needed{hint}"
    shown = source if source.replace(".", "").isidentifier() else "..."
    hint = f"{shown} == true" if expected == BOOL else f"{expected}({shown})"
    return f"the type of its result is not known before it runs, but {wanted} is needed: write {hint}"
