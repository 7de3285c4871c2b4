"""Builds programs from Go modules, each into a folder of its own that is either complete or absent.

Go verifies what it downloads: our modules against their go.sum, `go install name@version` against Go's checksum database.
The folder's name holds the version and a hash of what else decides the build, so a changed pin never meets an old binary.
CGO is off: a binary that is linked to the host's C library may not start on the node's older one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Final

from .folders import HERE, Folders
from .pins import KUBERNETES, Program
from .processes import ClusterError, ask, step, work
from .scratch import scratch_folder

_MAJOR, _MINOR, _ = KUBERNETES.removeprefix("v").split(".")

VERSION_VARIABLES: Final = {
    "k8s.io/component-base/version.gitVersion": KUBERNETES,
    "k8s.io/component-base/version.gitMajor": _MAJOR,
    "k8s.io/component-base/version.gitMinor": _MINOR,
    "k8s.io/component-base/version.gitTreeState": "clean",
    "k8s.io/client-go/pkg/version.gitVersion": KUBERNETES,
}
"""What Kubernetes' own build stamps into its programs; kubeadm and the API server compare these versions."""


DOWNLOAD_S: Final = 600.0
"""Seconds for one module's source over a slow line."""


def build_program(program: Program, folders: Folders) -> Path:
    """Return the folder that holds the program's binaries, built now unless it is there.

    Raises:
        ClusterError: Go is missing or the build failed.
    """
    target = program_folder(program, folders)
    if target.is_dir():
        return target
    if shutil.which("go") is None:
        raise ClusterError(f"{program.name} has to be built and Go is not installed; install Go 1.26 or later (https://go.dev/doc/install)")
    what = f"building {program.name} {program.version} (about {program.minutes} min of compiling the first time)"
    with step(what), scratch_folder(folders.work, f"program-{program.name}") as scratch:
        work(*_command(program, scratch), log=folders.log(program.name), environment=_environment(scratch), folder=_folder(program))
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch.rename(target)
    return target


def program_folder(program: Program, folders: Folders) -> Path:
    """Return where a program's binaries lie once they are built; the folder is there if they are."""
    return folders.programs / f"{program.name}-{program.version}-{_fingerprint(program)}"


def find_module(module: str, version: str) -> Path:
    """Return the folder of a module's source in Go's module cache, downloaded if need be."""
    answer = ask("go", "mod", "download", "-json", f"{module}@{version}", timeout_s=DOWNLOAD_S)
    return Path(str(json.loads(answer)["Dir"]))


def _fingerprint(program: Program) -> str:
    parts = [program.source, program.version, *program.packages, program.tags]
    if program.is_ours:
        parts += [repr(VERSION_VARIABLES), *(path.read_text() for path in sorted((HERE / program.source).glob("*")) if path.suffix in (".go", ".mod", ".sum"))]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _command(program: Program, scratch: Path) -> list[str]:
    stamps = " ".join(f"-X {name}={value}" for name, value in VERSION_VARIABLES.items()) if program.is_ours else ""
    flags = ["-v", "-trimpath", "-buildvcs=false", "-tags", program.tags, "-ldflags", f"-s -w {stamps}".strip()]
    if program.is_ours:
        return ["go", "build", *flags, "-o", str(scratch / program.name), "."]
    names = [program.source if package == "." else f"{program.source}/{package}" for package in program.packages]
    return ["go", "install", *flags, *(f"{name}@{program.version}" for name in names)]


def _environment(scratch: Path) -> dict[str, str]:
    return {"CGO_ENABLED": "0", "GOBIN": str(scratch), "GOFLAGS": "", "GOWORK": "off", "GOTOOLCHAIN": os.environ.get("GOTOOLCHAIN", "auto")}


def _folder(program: Program) -> Path | None:
    return HERE / program.source if program.is_ours else None
