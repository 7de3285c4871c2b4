"""Where peers are kept, and how one learns that a peer is missing.

Peers are built or installed into the user's cache, each into a folder named by what made it, so that a changed pin is a new
folder. `python -m bench.install` (or `make bench-peers`) installs all of them; a bench installs what it needs by itself.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from bench.errors import PeerMissing
from bench.processes import PROJECT

CACHE: Final = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "aether" / "bench"
SOURCES: Final = PROJECT / "bench"

INSTALL_TIMEOUT_S: Final = 900.0
"""Seconds for downloading and building one peer."""

OUTPUT_TAIL: Final = 2000
"""Characters of a failed installation's output that are shown: the cause is at its end."""


def find_program(name: str, how: str) -> str:
    """Return the path of a program.

    Raises:
        PeerMissing: it is not on PATH; `how` says where it comes from.
    """
    found = shutil.which(name)
    if found is None:
        raise PeerMissing(f"there is no {name}: {how}")
    return found


def folder_of(name: str, pins: Iterable[Path]) -> Path:
    """Return the folder of a peer that is made from some files."""
    digest = hashlib.sha256()
    for path in sorted(pins):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return CACHE / f"{name}-{digest.hexdigest()[:12]}"


async def install(*command: str, folder: Path) -> None:
    """Run one step of an installation.

    Raises:
        PeerMissing: it failed; the message holds the end of what it said.
    """
    process = await asyncio.create_subprocess_exec(
        *command, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, process_group=0
    )
    try:
        async with asyncio.timeout(INSTALL_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError as exc:
        raise PeerMissing(f"{' '.join(command)} did not end within {INSTALL_TIMEOUT_S:g} s") from exc
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise PeerMissing(f"{' '.join(command)} failed: {output.decode(errors='replace')[-OUTPUT_TAIL:].strip()}")
