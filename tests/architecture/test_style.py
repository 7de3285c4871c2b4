"""The rules of style that a program can check, as a ratchet: what is listed as an exception may only become less."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SOURCES = sorted([*(PROJECT / "operator").rglob("*.py"), *(PROJECT / "runtime").rglob("*.py")])
FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 600
POSITIONAL_MAX = 5

MANY_POSITIONAL: set[str] = set()
"""Functions that take more than five positional arguments; none may be added."""

MUTABLE_CALLS = {"list", "dict", "set", "deque", "defaultdict", "OrderedDict", "Counter", "WeakValueDictionary", "WeakKeyDictionary"}
MARK = "TO" + "DO"


@cache
def read_tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def relative(path: Path) -> str:
    return path.relative_to(PROJECT).as_posix()


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(read_tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def test_functions_fit_on_a_screen() -> None:
    long = [
        f"{relative(path)}:{function.lineno} {function.name} has {length} lines"
        for path in SOURCES
        for function in functions(path)
        if (length := (function.end_lineno or function.lineno) - function.lineno + 1) > FUNCTION_LINES_MAX
    ]
    assert long == []


def test_modules_can_be_read_in_one_go() -> None:
    assert [f"{relative(path)} has {count} lines" for path in SOURCES if (count := len(path.read_text().splitlines())) > MODULE_LINES_MAX] == []


def test_functions_take_few_positional_arguments() -> None:
    found = set()
    for path in SOURCES:
        for function in functions(path):
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args) if argument.arg not in ("self", "cls")]
            if len(names) > POSITIONAL_MAX:
                found.add(f"{relative(path)}:{function.name}({', '.join(names)})")
    assert found == MANY_POSITIONAL


def test_no_module_is_a_drawer_for_odds_and_ends() -> None:
    assert [relative(path) for path in SOURCES if path.stem in ("utils", "util", "helpers", "common", "misc")] == []


def test_nothing_is_left_to_be_done_without_an_issue() -> None:
    pattern = re.compile(rf"\b{MARK}\b")
    assert [relative(path) for path in SOURCES if pattern.search(path.read_text())] == []


def test_every_module_says_what_it_is_for() -> None:
    assert [relative(path) for path in SOURCES if not ast.get_docstring(read_tree(path))] == []


def test_no_module_holds_state() -> None:
    """A collection on the module's level is a constant, in capitals or private and `Final`; nothing says `global`."""
    wrong = []
    for path in SOURCES:
        tree = read_tree(path)
        wrong += [f"{relative(path)}:{node.lineno} global" for node in ast.walk(tree) if isinstance(node, ast.Global)]
        wrong += [f"{relative(path)}:{node.lineno} {name}" for node in tree.body for name in _variables(node)]
    assert wrong == []


def _variables(node: ast.stmt) -> list[str]:
    """Return the names that a statement of a module binds to a mutable collection, unless they are spelt as constants."""
    if isinstance(node, ast.Assign):
        targets, value = node.targets, node.value
    elif isinstance(node, ast.AnnAssign) and node.value is not None and "Final" not in ast.unparse(node.annotation):
        targets, value = [node.target], node.value
    else:
        return []
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    mutable = isinstance(value, ast.List | ast.Dict | ast.Set | ast.ListComp | ast.DictComp | ast.SetComp) or (
        isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in MUTABLE_CALLS
    )
    return [name for name in names if mutable and not name.isupper() and not re.fullmatch(r"__\w+__", name)]


@pytest.mark.parametrize("name", ["create_task", "gather", "wait_for"])
def test_tasks_have_owners(name: str) -> None:
    """Ruff bans these too; here it also holds where a line is excused from ruff."""
    wrong = [
        f"{relative(path)}:{node.lineno}"
        for path in SOURCES
        for node in ast.walk(read_tree(path))
        if isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.value, ast.Name) and node.value.id == "asyncio"
    ]
    assert wrong == []
