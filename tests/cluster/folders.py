"""Where the cluster's files live; everything outside the Docker engine that `clean --all` has to remove is below one folder.

    <cache>/programs/<name>-<version>/   what was built from Go modules, complete or absent
    <cache>/bin/                         links to the kind, kubectl and helm in use: a folder for PATH
    <cache>/clusters/<name>/             one folder for each kind cluster made here: kubeconfig, markers
    <cache>/work, logs, locks            half-made things of a run, its logs, locks

Folders are made under another name and renamed when they are complete, so that a run which is killed leaves nothing that
the next one trusts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ENGINE_STATE: Final = Path("/var/tmp/aether-docker")
"""The state of a Docker engine started here. Not below the cache: a home may lie on an overlay or a network file system,
on which Docker's overlay2 driver cannot work, and a Unix socket's path must stay short."""

PROJECT: Final = Path(__file__).resolve().parents[2]
"""The checkout: the Docker build context and the home of `kind-config.yaml`."""

HERE: Final = Path(__file__).resolve().parent
"""This package: Go modules and node files lie beside the code."""


@dataclass(frozen=True, slots=True)
class Folders:
    """All paths below one cache folder."""

    cache: Path

    @property
    def programs(self) -> Path:
        """Return the folder of programs built from Go modules."""
        return self.cache / "programs"

    @property
    def bin(self) -> Path:
        """Return the folder to put in front of PATH."""
        return self.cache / "bin"

    @property
    def work(self) -> Path:
        """Return the folder whose content no run trusts but its own."""
        return self.cache / "work"

    def log(self, name: str) -> Path:
        """Return the path of one step's log."""
        return self.cache / "logs" / f"{name}.log"

    def lock(self, name: str) -> Path:
        """Return the path of a lock file."""
        return self.cache / "locks" / name

    def cluster(self, name: str) -> Path:
        """Return the folder of one kind cluster made here."""
        return self.cache / "clusters" / name

    def cluster_names(self) -> list[str]:
        """Return the names of all kind clusters made here, half-made ones included."""
        clusters = self.cache / "clusters"
        return sorted(path.name for path in clusters.iterdir() if path.is_dir()) if clusters.is_dir() else []


def find_folders(environment: Mapping[str, str] = os.environ) -> Folders:
    """Return the folders of this user: below XDG_CACHE_HOME, else ~/.cache."""
    cache = environment.get("XDG_CACHE_HOME", "")
    base = Path(cache) if os.path.isabs(cache) else Path(environment.get("HOME", "") or Path.home()) / ".cache"
    return Folders(base / "aether" / "cluster")
