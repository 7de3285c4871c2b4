"""runc, asked only for the capabilities that this host may grant.

A sandboxed host may withhold a capability even from root (CAP_SYS_RESOURCE is the usual one). Docker's `--privileged`
asks for all of them, runc cannot grant them, and every node of kind fails to start. This program stands in front of runc:
it cuts the capability sets in a container's bundle, and in a process that is added to a container, down to the host's
bounding set, then becomes runc. Nothing is gained by it: what it removes could not have been granted.

The engine runs a copy of this file with the plain interpreter, so it imports the standard library only and nothing of ours.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

_NAMES: Final = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE NET_BROADCAST NET_ADMIN"
    " NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME"
    " SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON"
    " BPF CHECKPOINT_RESTORE"
)

CAPABILITIES: Final = tuple(_NAMES.split())
"""The kernel's capabilities in the order of their bits (capabilities(7)); 41 since Linux 5.9."""

RUNC_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
"""Where packages put runc; the engine's own PATH may be anything."""


def read_bounding_set(status: str) -> frozenset[str]:
    """Return the names in the bounding set, given the text of /proc/<pid>/status."""
    bits = next(int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapBnd:"))
    return frozenset(f"CAP_{name}" for number, name in enumerate(CAPABILITIES) if bits >> number & 1)


def is_complete(granted: Iterable[str]) -> bool:
    """Tell whether a host grants everything, so that plain runc will do."""
    return len(frozenset(granted)) == len(CAPABILITIES)


def cut_capabilities(process: dict[str, object], granted: frozenset[str]) -> dict[str, object]:
    """Return an OCI process whose capability sets hold only what is granted."""
    sets = process.get("capabilities")
    if not isinstance(sets, dict):
        return process
    return {**process, "capabilities": {name: [one for one in wanted or [] if one in granted] for name, wanted in sets.items()}}


def find_file(arguments: Sequence[str]) -> tuple[Path, bool] | None:
    """Return the file that a runc call reads its process from and whether it is a whole bundle; None where it reads none."""
    if "create" in arguments or "run" in arguments:
        return Path(_option(arguments, "--bundle", "-b") or ".") / "config.json", True
    process = _option(arguments, "--process", "-p") if "exec" in arguments else None
    return (Path(process), False) if process else None


def rewrite(path: Path, *, is_bundle: bool, granted: frozenset[str]) -> None:
    """Cut the capabilities in a bundle's configuration or in a process file."""
    content = json.loads(path.read_text())
    if is_bundle:
        content["process"] = cut_capabilities(content["process"], granted)
    else:
        content = cut_capabilities(content, granted)
    path.write_text(json.dumps(content))


def main(arguments: Sequence[str]) -> None:
    """Rewrite what this call reads, then become runc."""
    found = find_file(arguments)
    if found is not None:
        granted = read_bounding_set(Path("/proc/self/status").read_text())
        rewrite(found[0], is_bundle=found[1], granted=granted)
    runc = shutil.which("runc", path=RUNC_PATH) or "/usr/sbin/runc"
    os.execv(runc, ["runc", *arguments])


def _option(arguments: Sequence[str], *names: str) -> str | None:
    for position, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name in names and equals:
            return value
        if argument in names and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
