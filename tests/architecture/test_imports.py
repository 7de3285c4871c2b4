"""The packages form layers, and the arrows between them are the only imports there are (design, section 7)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
ROOTS = (PROJECT / "operator", PROJECT / "runtime")
EVERYTHING = {"aether_api", "aether_model", "aether_kube", "aether_nats", "aether_runtime", "aether_operator"}

ALLOWED: dict[str, set[str]] = {
    "aether_api": set(),
    "aether_model": {"aether_api"},
    "aether_kube": {"aether_api"},
    "aether_nats": {"aether_api"},
    "aether_runtime": {"aether_api", "aether_kube", "aether_model", "aether_nats"},
    "aether_operator": {"aether_api", "aether_kube", "aether_model", "aether_nats"},
    "aether_cli": EVERYTHING,
}

LAZY_ALLOWED = {
    "aether_runtime/process.py": "a runtime that reads a folder must not load the Kubernetes client, which takes half a second",
}
"""Modules outside of the command line that may import inside functions, each with its reason."""


def modules(package: str) -> list[Path]:
    return [path for root in ROOTS for path in sorted((root / package).rglob("*.py"))]


def own_imports(tree: ast.AST) -> Iterator[tuple[ast.stmt, str]]:
    """Yield each import of a package of the project, with that package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which package is meant"
            names = [node.module or ""]
        else:
            continue
        yield from ((node, name.partition(".")[0]) for name in names if name.startswith("aether_"))


def imports_inside_functions(tree: ast.AST) -> set[ast.stmt]:
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node for function in functions for node in ast.walk(function) if isinstance(node, ast.Import | ast.ImportFrom)}


def relative(path: Path) -> str:
    return f"{path.relative_to(PROJECT).as_posix().partition('/')[2]}"


@pytest.mark.parametrize("package", ALLOWED)
def test_a_package_imports_only_the_layers_below_it(package: str) -> None:
    assert modules(package), f"there is no package {package}"
    wrong = [
        f"{relative(path)}:{node.lineno} imports {imported}"
        for path in modules(package)
        for node, imported in own_imports(ast.parse(path.read_text()))
        if imported != package and imported not in ALLOWED[package]
    ]
    assert wrong == []


def test_every_package_of_the_source_roots_has_its_layer() -> None:
    assert {path.name for root in ROOTS for path in root.iterdir() if path.is_dir() and path.name.startswith("aether_")} == set(ALLOWED)


@pytest.mark.parametrize("package", sorted(set(ALLOWED) - {"aether_cli"}))
def test_only_the_command_line_imports_inside_functions(package: str) -> None:
    wrong = [f"{relative(path)}:{node.lineno}" for path in modules(package) if relative(path) not in LAZY_ALLOWED for node in imports_inside_functions(ast.parse(path.read_text()))]
    assert wrong == []


def test_the_command_line_loads_operator_and_runtime_only_when_they_are_asked_for() -> None:
    wrong = []
    for path in modules("aether_cli"):
        tree = ast.parse(path.read_text())
        lazy = imports_inside_functions(tree)
        wrong += [relative(path) for node, imported in own_imports(tree) if imported in {"aether_operator", "aether_runtime"} and node not in lazy]
    assert wrong == []


def test_the_entry_of_the_command_line_imports_nothing_of_ours_but_how_it_prints() -> None:
    entry, output = (ast.parse((PROJECT / "runtime" / "aether_cli" / name).read_text()) for name in ("main.py", "output.py"))
    assert [node.module for node, _ in own_imports(entry) if isinstance(node, ast.ImportFrom)] == ["aether_cli.output"]
    assert len([*own_imports(entry)]) == 1
    assert [*own_imports(output)] == []


@pytest.mark.parametrize("root", ROOTS, ids=lambda root: root.name)
def test_a_source_root_is_no_package(root: Path) -> None:
    """With an `__init__.py` the folder `operator` would shadow the module of that name in the standard library."""
    assert not (root / "__init__.py").exists()
