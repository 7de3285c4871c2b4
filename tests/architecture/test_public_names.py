"""What programs may import from `aether_runtime`: the list only grows, every name is described, and nothing is loaded before it is used."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import pytest

import aether_runtime

PROJECT = Path(__file__).parents[2]
PAGE = (PROJECT / "docs" / "python-api.md").read_text()
FACE = PROJECT / "runtime" / "aether_runtime" / "__init__.py"

PUBLIC = [
    "ActorId", "ActorModel", "ActorVersion", "AetherError", "BusSettings", "Busy", "CommandClient", "CommitLog", "CommitTooLarge", "DesiredActor", "Disconnected", "Event",
    "EventBus", "EventInvalid", "EventStore", "EventStoreSettings", "EventStored", "EventSubscription", "Gap", "InvalidEnvelope", "InvalidName", "JetStreamError", "Model", "ModelInvalid",
    "NatsConnection", "NatsSettings", "NewEvent", "NoResponders", "OutcomeUnknown", "Overflow", "PayloadTooLarge", "PermanentError", "PermissionDenied", "PythonModel", "ReplayResult",
    "Reply", "ReplyEvent", "RequestTimeout", "Reset", "RetryableError", "Runtime", "RuntimeConfig", "RuntimeMessage", "RuntimePorts", "RuntimeSettings", "SettingsInvalid",
    "SnapshotStore", "StreamFull", "Unreadable", "VMRegistry", "VersionConflictError", "VirtualMachine", "VmProvider", "build_model", "compile_python", "open_runtime", "parse_actor_id",
]  # fmt: skip
"""Frozen: a name may be added, none may go."""

NO_NAMES = {"Unknown", "ValidationError"}
"""What the page names beside: a reason of a reply, and an error of pydantic's."""

METHODS = {
    "VirtualMachine": ["get_id", "get_actor_id", "get_state", "get_version", "start", "process_event", "process_command", "stop"],
    "Runtime": ["start", "stop", "load_model", "send_message", "get_active_vms", "create_vm", "stop_vm"],
    "VMRegistry": ["get", "put", "remove"],
    "EventStore": ["save_event", "save_events", "get_events", "get_events_with_errors", "get_latest_version", "update_version_cache"],
    "SnapshotStore": ["read_latest", "write"],
    "EventBus": ["subscribe_to_event_stored"],
}
"""The methods that the seed names, and those of ours that stand for the rest of it."""


def test_the_public_names_are_these() -> None:
    assert aether_runtime.__all__ == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_can_be_imported_and_says_what_it_is(name: str) -> None:
    found = getattr(aether_runtime, name)
    assert name == "VmProvider" or inspect.getdoc(found)


@pytest.mark.parametrize("name", PUBLIC)
def test_every_public_name_is_described_in_the_docs(name: str) -> None:
    assert f"`{name}" in PAGE


def test_the_page_names_nothing_that_cannot_be_imported() -> None:
    program, prose = PAGE.split("```python"), re.sub(r"```python.*?```", "", PAGE, flags=re.DOTALL)
    modules = re.findall(r"^from (aether_\w+(?:\.\w+)*) import", "\n".join(program), re.MULTILINE)
    assert set(modules) == {"aether_runtime"}
    assert set(re.findall(r"`([A-Z][a-z]\w+)", prose)) - set(PUBLIC) == NO_NAMES


@pytest.mark.parametrize(("owner", "method"), [(owner, method) for owner, methods in METHODS.items() for method in methods])
def test_the_methods_that_the_seed_names_are_there_and_described(owner: str, method: str) -> None:
    assert inspect.getdoc(cast("Callable[..., object]", getattr(getattr(aether_runtime, owner), method)))
    assert f"`{method}(" in PAGE


def test_what_type_checkers_see_is_what_is_loaded() -> None:
    tree = ast.parse(FACE.read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If) and isinstance(node.test, ast.Name)]
    seen = {node.module: tuple(alias.name for alias in node.names) for node in block.body if isinstance(node, ast.ImportFrom)}
    assert seen == vars(aether_runtime)["_HOMES"]
    assert sorted(name for names in seen.values() for name in names) == sorted(PUBLIC)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="Runtim"):
        vars(aether_runtime)["__getattr__"]("Runtim")
    assert set(PUBLIC) <= set(dir(aether_runtime))


def test_importing_the_package_loads_nothing_else() -> None:
    program = "import sys, aether_runtime; print(*sorted(name for name in sys.modules if name.startswith('aether_')))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["aether_runtime"]
