"""Builds the image of Aether itself, `aether:dev`, unless it is there with the same content.

The base is the Dockerfile's default where it can be pulled, else a Python from Debian's packages. A machine of the second kind
reaches its package index through its own pip configuration, which no build container sees and no image should hold; there the
wheels are fetched here, on the host, into build/wheels, and the Dockerfile installs from that folder alone. Hashes are
required either way.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from .debian import LABEL, ensure_python_image, fingerprint, has_python_image, is_made_from
from .folders import PROJECT, Folders, find_folders
from .lifecycle import engine_for_a_while
from .locks import exclusive
from .node_image import Source, choose_source, is_present, pull
from .pins import PYTHON_BASE_IMAGE
from .processes import ask, say, step, work

IMAGE: Final = "aether:dev"
"""The name of a build from a checkout; releases have versions."""

REQUIREMENTS: Final = ("requirements/build.txt", "requirements/image.txt")
"""The build backend, and what the image runs with: exact versions with hashes."""

SOURCES: Final = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "LICENSE", *REQUIREMENTS, "operator", "runtime")
"""What the Docker build reads; .dockerignore lets the same through."""

BASE_VARIABLE: Final = "AETHER_BASE_IMAGE"
"""The environment variable with another base image: a mirror's, a hardened one."""

GLIBC_MINOR_MAX: Final = 36
"""Debian 12's glibc is 2.36: wheels built for that or an older one run in both bases."""

MACHINES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
"""Names of architectures: Docker's to the wheels'."""


def ensure_image(tag: str = IMAGE) -> str:
    """Return the image of this checkout, built now unless its content is the same.

    Raises:
        ClusterError: no base image can be had, a wheel is missing, or the build failed.
    """
    folders = find_folders()
    with engine_for_a_while(folders), exclusive(folders.lock("images"), "the images"):
        base = _ensure_base(folders)
        made_from = content_of(PROJECT, ask("docker", "image", "inspect", "--format", "{{.Id}}", base))
        if is_made_from(tag, made_from):
            say(f"{tag} is up to date")
            return tag
        wheels = base != PYTHON_BASE_IMAGE and not os.environ.get(BASE_VARIABLE)
        with exclusive(folders.lock("wheels"), "build/wheels"):
            _prepare_wheels(base, folders) if wheels else _drop_wheels()
            with step(f"building {tag} on {base}"):
                options = ("--tag", tag, "--build-arg", f"BASE_IMAGE={base}", "--label", f"{LABEL}={made_from}")
                work("docker", "build", *options, PROJECT, log=folders.log("image"))
    return tag


def content_of(project: Path, base: str) -> str:
    """Return the fingerprint of all that decides the image: the build's sources and the base."""
    parts: list[str | bytes] = [base]
    for name in SOURCES:
        for path in _files(project / name):
            parts += [str(path.relative_to(project)), path.read_bytes()]
    return fingerprint(*parts)


def platform_tags(architecture: str) -> list[str]:
    """Return the wheel platforms that the image can run, newest first, for Docker's name of an architecture."""
    machine = MACHINES[architecture]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in range(GLIBC_MINOR_MAX, 4, -1)]
    return [*tags, f"manylinux2014_{machine}", f"linux_{machine}"]


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for one in sorted(path.rglob("*")):
        if one.is_file() and "__pycache__" not in one.parts and one.suffix != ".pyc" and not any(part.endswith(".egg-info") for part in one.parts):
            yield one


def _ensure_base(folders: Folders) -> str:
    named = os.environ.get(BASE_VARIABLE, "")
    if named:
        return named
    source = choose_source(published_is_here=is_present(PYTHON_BASE_IMAGE), built_is_here=has_python_image(), can_pull=lambda: pull(PYTHON_BASE_IMAGE))
    return PYTHON_BASE_IMAGE if source is Source.PUBLISHED else ensure_python_image(folders)


def _prepare_wheels(base: str, folders: Folders) -> None:
    """Fetch the wheels for the base's Python; the folder is complete, for these requirements, or absent."""
    target = PROJECT / "build/wheels"
    version = ask("docker", "run", "--rm", base, "python3", "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
    architecture = ask("docker", "version", "--format", "{{.Server.Arch}}")
    stamp = fingerprint(version, architecture, *((PROJECT / name).read_bytes() for name in REQUIREMENTS))
    if (target / stamp).exists():
        return
    scratch = PROJECT / "build/wheels.new"
    shutil.rmtree(scratch, ignore_errors=True)
    with step(f"fetching wheels for Python {version} on {architecture}"):
        _download(scratch, version, platform_tags(architecture), folders)
    (scratch / stamp).touch()
    _drop_wheels()
    scratch.rename(target)


def _download(target: Path, version: str, platforms: list[str], folders: Folders) -> None:
    sources = [word for name in REQUIREMENTS for word in ("--requirement", str(PROJECT / name))]
    options = ["--require-hashes", "--implementation=cp", f"--python-version={version}", f"--abi=cp{version.replace('.', '')}"]
    options += ["--abi=abi3", "--abi=none", *(f"--platform={platform}" for platform in platforms)]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest", str(target), *options, *sources]
    work(*command, log=folders.log("wheels"))


def _drop_wheels() -> None:
    shutil.rmtree(PROJECT / "build/wheels", ignore_errors=True)
