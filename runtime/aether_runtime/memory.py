"""How much memory this process uses and may use: from its control group, as Kubernetes sets the limit there, else from /proc.

Page cache that the kernel would give back at once is not counted, as the kubelet does not count it either.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Final

from aether_runtime.core.passivation import MemoryUse

CGROUP: Final = Path("/sys/fs/cgroup")
STATM: Final = Path("/proc/self/statm")

UNLIMITED: Final = 1 << 60
"""Bytes: what control groups of version 1 say instead of "no limit" is above it."""


def read_memory(limit_bytes: int = 0, *, cgroup: Path = CGROUP, statm: Path = STATM) -> MemoryUse | None:
    """Return use and limit; None where there is no limit.

    Args:
        limit_bytes: a limit that a person has set for the process, 0 for that of the control group.
    """
    if limit_bytes:
        resident = _read(statm).split()
        return MemoryUse(int(resident[1]) * os.sysconf("SC_PAGE_SIZE"), limit_bytes) if len(resident) > 1 else None
    for limit, used, cache, stat in (
        (cgroup / "memory.max", cgroup / "memory.current", "inactive_file", cgroup / "memory.stat"),
        (cgroup / "memory/memory.limit_in_bytes", cgroup / "memory/memory.usage_in_bytes", "total_inactive_file", cgroup / "memory/memory.stat"),
    ):
        most, now = _read(limit).strip(), _read(used).strip()
        if most.isdigit() and now.isdigit() and 0 < int(most) < UNLIMITED:
            return MemoryUse(max(0, int(now) - _find(_read(stat), cache)), int(most))
    return None


def give_back_memory() -> None:
    """Ask the C library to return what was freed; it keeps much of it otherwise, and nobody would see that actors have gone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _find(text: str, name: str) -> int:
    return next((int(value) for key, _, value in (line.partition(" ") for line in text.splitlines()) if key == name), 0)
