"""Refuses CEL source that compiles but would mislead or harm.

The engine bounds its own steps and recursion, but not memory: nine chained `.map(a, [a, a, ...])` of 237 characters took 5 GB
(measured), and `has()` on one of our flat variables gives the variable instead of true or false. Both are seen in the source
alone. What is left, an author can still waste: whoever writes models is trusted with the memory of their own runtime pool.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

CONSTANT_FUNCTIONS: Final = frozenset({"duration", "timestamp", "matches"})
"""Functions whose last argument is a text of its own language, which most authors write as a literal."""

GROWTH_MAX: Final = 64
"""Times by which all `map` macros of one expression together may multiply a value: a table of 8 by 8, not a bomb."""

REPLACE_MAX: Final = 2
"""Calls of `replace` in one expression: each may multiply the length of its string."""

_TOKEN = re.compile(
    r"""
      (?P<comment> //[^\n]* )
    | (?P<string>  [bB]?[rR] (?: \"\"\".*?\"\"\" | '''.*?''' | "[^"\n]*" | '[^'\n]*' )
                 | [bB]?     (?: \"\"\"(?:\\.|[^\\])*?\"\"\" | '''(?:\\.|[^\\])*?''' | "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' ) )
    | (?P<word>    [A-Za-z_][A-Za-z0-9_]* )
    | (?P<mark>    \S )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong with an expression; `line` and `column` count from 1, 0 when the engine named no place."""

    message: str
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class _Token:
    text: str
    offset: int


class LiteralArgument(NamedTuple):
    """A string literal, quotes included, as the last argument of one of `CONSTANT_FUNCTIONS`."""

    function: str
    literal: str
    offset: int


def lint_source(source: str, roots: frozenset[str]) -> list[Finding]:
    """Return what is refused although it compiles; `roots` are the first words of flat variables, such as `state`."""
    tokens = list(_code_tokens(source))
    found = [*_misleading_tests(tokens, roots), *_growing_calls(tokens)]
    return [Finding(message, *position_of(source, offset)) for offset, message in found]


def literal_arguments(source: str) -> Iterator[LiteralArgument]:
    """Yield what can be judged without any value: the literals of `duration('3d')`, `timestamp('2026')`, `x.matches('[')`."""
    tokens = [_Token(match.group(), match.start()) for match in _TOKEN.finditer(source) if match.lastgroup != "comment"]
    for i, token in enumerate(tokens):
        if token.text in CONSTANT_FUNCTIONS and i + 1 < len(tokens) and tokens[i + 1].text == "(":
            end = _end_of_call(tokens, i + 2)
            last = tokens[end - 1]
            if end < len(tokens) and last.text[-1] in "'\"" and tokens[end - 2].text in ("(", ","):
                yield LiteralArgument(token.text, last.text, last.offset)


def words_of(source: str) -> frozenset[str]:
    """Return the identifiers outside of strings and comments: a superset of the names that the expression uses."""
    return frozenset(token.text for token in _code_tokens(source) if token.text[0].isalpha() or token.text[0] == "_")


def ordered_macros(source: str) -> list[int]:
    """Return the offsets of the points before `map(` and `filter(`, last first: what these macros give has the order of what they go through."""
    tokens = list(_code_tokens(source))
    calls = zip(tokens, tokens[1:], tokens[2:], strict=False)
    return [point.offset for point, word, mark in calls if point.text == "." and word.text in ("map", "filter") and mark.text == "("][::-1]


def position_of(source: str, offset: int) -> tuple[int, int]:
    """Return line and column, both from 1, of a character."""
    before = source[:offset]
    return before.count("\n") + 1, offset - (before.rfind("\n") + 1) + 1


def _code_tokens(source: str) -> Iterator[_Token]:
    """Words and single marks, without blanks, strings and comments."""
    for match in _TOKEN.finditer(source):
        if match.lastgroup in ("word", "mark"):
            yield _Token(match.group(), match.start())


def _misleading_tests(tokens: list[_Token], roots: frozenset[str]) -> Iterator[tuple[int, str]]:
    texts = [token.text for token in tokens]
    for i, token in enumerate(tokens):
        if texts[i : i + 2] in ([".", "?"], ["[", "?"]):
            yield token.offset, "optional values (.? and [?) are not available: an absent optional field is null, so compare it: command.note == null"
        flat = texts[i + 2 : i + 6]
        if texts[i : i + 2] == ["has", "("] and len(flat) == 4 and flat[0] in roots and flat[1] == "." and flat[3] == ")":
            name = f"{flat[0]}.{flat[2]}"
            yield token.offset, f"has({name}) is not available: a required field is always there, an absent optional field is null, so write {name} != null"


def _growing_calls(tokens: list[_Token]) -> Iterator[tuple[int, str]]:
    """Judge how far `map` macros and `replace` can multiply a value, by how often each body uses its own variable."""
    growth, replaces = 1, 0
    for i, token in enumerate(tokens):
        called = i > 0 and tokens[i - 1].text == "." and i + 1 < len(tokens) and tokens[i + 1].text == "("
        if called and token.text == "map":
            growth *= max(1, _uses_of_variable(tokens, i + 2))
            if growth > GROWTH_MAX:
                yield token.offset, f"the map macros multiply their input by more than {GROWTH_MAX}: use the variables of the macros less often"
                return
        if called and token.text == "replace":
            replaces += 1
            if replaces == REPLACE_MAX + 1:
                yield token.offset, f"replace may be called {REPLACE_MAX} times in one expression"


def _uses_of_variable(tokens: list[_Token], start: int) -> int:
    """Count the uses of the macro's variable, which is the first token after the parenthesis, up to its end."""
    if start >= len(tokens):
        return 0
    name = tokens[start].text
    return sum(token.text == name for token in tokens[start + 1 : _end_of_call(tokens, start)])


def _end_of_call(tokens: list[_Token], start: int) -> int:
    """Return the place of the parenthesis that ends a call whose first argument begins at `start`; the number of tokens if none does."""
    depth = 1
    for i, token in enumerate(tokens[start:], start):
        depth += (token.text in ("(", "[", "{")) - (token.text in (")", "]", "}"))
        if depth == 0:
            return i
    return len(tokens)
