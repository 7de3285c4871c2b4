"""Deletes folders in which something may be mounted: debootstrap's root, the engine's state after it was killed.

Deleting must never reach through a mount: first everything below is unmounted, and if that fails nothing is deleted.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from .processes import ClusterError, attempt


def remove_tree(root: Path) -> None:
    """Unmount all below a folder, then delete it; a missing folder is fine.

    Raises:
        ClusterError: something below cannot be unmounted.
    """
    for mount in mounts_below(root, _mounts()):
        attempt("umount", mount)
    left = mounts_below(root, _mounts())
    if left:
        raise ClusterError(f"{left[0]} is mounted and cannot be unmounted; unmount it, then delete {root}")
    shutil.rmtree(root, ignore_errors=True)


def mounts_below(root: Path, mounts: str) -> list[str]:
    """Return the mount points at or below a folder, deepest first, given the text of /proc/self/mounts."""
    points = [line.split()[1].replace("\\040", " ") for line in mounts.splitlines() if line.strip()]
    return sorted((point for point in points if Path(point).is_relative_to(root)), key=len, reverse=True)


def _mounts() -> str:
    path = Path("/proc/self/mounts")
    return path.read_text() if path.exists() else ""
