"""Folders for half-made things, and deleting folders in which something may be mounted.

Every run works in a scratch folder of its own: a killed run's children (debootstrap's, Go's) may write on for a while, and must
not do so where the next run works. Deleting must never reach through a mount, such as debootstrap's /proc: first
everything below is unmounted, and if that fails nothing is deleted.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .processes import ClusterError, attempt


@contextmanager
def scratch_folder(work: Path, name: str) -> Iterator[Path]:
    """Make an empty folder for a block and delete it afterwards, with what killed runs left under the same name."""
    work.mkdir(parents=True, exist_ok=True)
    for left in work.glob(f"{name}-*"):
        with suppress(ClusterError):  # something of the killed run still lives; a later run tries again
            remove_tree(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=work))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        remove_tree(folder)


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
