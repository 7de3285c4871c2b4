"""Keeps runs that share one cache and one Docker engine out of each other's way.

Two kinds, both `flock` on a file, which the kernel drops when the process dies, however it dies: an exclusive lock while
something is made, and a lease, which many may hold at once and which says "I use this". Whoever wants to end a shared
thing (a cluster, the engine) asks whether it is the last user; a lease of a killed run counts for nothing.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import say


@dataclass(frozen=True, slots=True)
class Lease:
    """A shared claim on a file; it ends with `close`, at the latest with the process."""

    path: Path
    descriptor: int

    def close(self) -> None:
        """Give the claim back."""
        os.close(self.descriptor)


@contextmanager
def exclusive(path: Path, what: str) -> Iterator[None]:
    """Hold a file's lock alone; say so when another run has to be waited for."""
    descriptor = _open(path)
    try:
        if not _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            say(f"another run holds {what}; waiting for it")
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def take_lease(path: Path) -> Lease:
    """Claim a thing as used; waits while another run is ending it."""
    descriptor = _open(path)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return Lease(path, descriptor)


@contextmanager
def last_user(path: Path) -> Iterator[bool]:
    """Tell whether nobody holds a lease on the file, and keep new ones out meanwhile."""
    descriptor = _open(path)
    try:
        yield _locked(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    path.parent.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _locked(descriptor: int, operation: int) -> bool:
    try:
        fcntl.flock(descriptor, operation)
    except BlockingIOError:
        return False
    return True
