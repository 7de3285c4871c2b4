"""Chooses kind, kubectl and helm: those on PATH if they are new enough, else our own builds.

The choice is laid down as links in one folder to put in front of PATH, so a test and a person use the same programs. The
bounds on versions are those of each project: kubectl supports one minor of skew to the API server, a node image belongs to
a release of kind.
"""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .folders import Folders
from .locks import exclusive
from .pins import HELM_PROGRAM, KIND_PROGRAM, KUBE_PROGRAM, Program
from .processes import attempt, say
from .programs import build_program, program_folder


@dataclass(frozen=True, slots=True)
class Tool:
    """A program that people often have: how to ask its version, the oldest that will do, and how to build it."""

    name: str
    version_command: tuple[str, ...]
    oldest: tuple[int, int]
    program: Program


TOOLS: Final = (
    Tool("kind", ("version",), (0, 33), KIND_PROGRAM),
    Tool("kubectl", ("version", "--client", "--output=json"), (1, 35), KUBE_PROGRAM),
    Tool("helm", ("version", "--short"), (3, 14), HELM_PROGRAM),
)
"""kind: the release whose notes list the node image. kubectl: Kubernetes 1.36 less one minor. helm: 3.14 is the first that knows
`--reset-then-reuse-values`, which upgrades of a chart with new defaults need."""


def ensure_tools(folders: Folders) -> Path:
    """Return the folder that holds kind, kubectl and helm.

    Raises:
        ClusterError: a tool is neither on PATH nor can be built.
    """
    with exclusive(folders.lock("tools"), "the tools"):
        for tool in TOOLS:
            chosen = _find(tool, folders) or build_program(tool.program, folders) / tool.program.name
            _link(folders.bin / tool.name, chosen)
    return folders.bin


def find_helm(folders: Folders) -> Path | None:
    """Return helm if it is on PATH and new enough, or was built before."""
    tool = next(tool for tool in TOOLS if tool.name == "helm")
    built = program_folder(HELM_PROGRAM, folders) / "helm"
    return _find(tool, folders) or (built if built.is_file() else None)


def parse_version(text: str) -> tuple[int, int] | None:
    """Return the first `vMAJOR.MINOR` in a program's answer."""
    found = re.search(r"\bv(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else None


def is_new_enough(answer: str, oldest: tuple[int, int]) -> bool:
    """Tell whether a program's answer names a version that will do."""
    version = parse_version(answer)
    return version is not None and version >= oldest


def path_without(folder: Path, path: str) -> str:
    """Return PATH without one folder: our own links must not be taken for what the user has."""
    return os.pathsep.join(entry for entry in path.split(os.pathsep) if entry and Path(entry) != folder)


def _find(tool: Tool, folders: Folders) -> Path | None:
    found = shutil.which(tool.name, path=path_without(folders.bin, os.environ.get("PATH", "")))
    if found is None:
        return None
    answer = attempt(found, *tool.version_command, timeout_s=20)
    return Path(found) if answer.returncode == 0 and is_new_enough(answer.stdout, tool.oldest) else None


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.readlink() == target:
        return
    say(f"using {target}")
    link.parent.mkdir(parents=True, exist_ok=True)
    new = link.with_name(f".{link.name}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(target)
    new.replace(link)
