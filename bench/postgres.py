"""A PostgreSQL of our own for the peers that store there: Debian's programs, a fresh cluster in a temporary folder, default durability.

PostgreSQL refuses to run as root; a run as root (as in a container) starts it as the user `postgres`, which Debian's package makes.
"""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from bench.errors import PeerMissing
from bench.peers import install
from bench.processes import start
from tests.cluster.processes import find_free_ports

HOW: Final = "install it, on Debian with `apt-get install postgresql`"
DEBIAN: Final = Path("/usr/lib/postgresql")
USER: Final = "bench"


@asynccontextmanager
async def start_postgres() -> AsyncGenerator[str, None]:
    """Run a cluster for the length of a `with` block and yield its host:port; user `bench`, database `postgres`, no password.

    Raises:
        PeerMissing: PostgreSQL is not installed, or there is no user to run it as.
    """
    programs = _find_programs()
    prefix = _build_prefix()
    folder = Path(tempfile.mkdtemp(prefix="aether-bench-postgres-"))
    try:
        if prefix:
            shutil.chown(folder, "postgres")
        await install(*prefix, str(programs / "initdb"), "-D", str(folder / "data"), "-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale", folder=folder)
        [port] = find_free_ports(1)
        command = (
            *prefix,
            str(programs / "postgres"),
            "-D",
            str(folder / "data"),
            "-p",
            str(port),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "log_min_messages=panic",
        )
        async with start(*command, folder=folder):
            await _await_ready(programs, port, folder)
            yield f"127.0.0.1:{port}"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _await_ready(programs: Path, port: int, folder: Path) -> None:
    await install(
        "sh",
        "-c",
        f"for i in $(seq 100); do '{programs}/pg_isready' -q -U bench -d postgres -h 127.0.0.1 -p {port} && exit 0; sleep 0.1; done; echo PostgreSQL did not start; exit 1",
        folder=folder,
    )


def _find_programs() -> Path:
    with suppress(OSError):
        versions = sorted((path for path in DEBIAN.iterdir() if (path / "bin" / "initdb").exists()), key=lambda path: int(path.name))
        if versions:
            return versions[-1] / "bin"
    found = shutil.which("initdb")
    if found is None:
        raise PeerMissing(f"there is no PostgreSQL: {HOW}")
    return Path(found).resolve().parent


def _build_prefix() -> tuple[str, ...]:
    """Return what lets a command run as somebody other than root."""
    if os.geteuid():
        return ()
    try:
        pwd.getpwnam("postgres")
    except KeyError as exc:
        raise PeerMissing(f"PostgreSQL does not run as root, and there is no user postgres: {HOW}") from exc
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", "--")
