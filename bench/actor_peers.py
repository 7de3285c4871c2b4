"""Peers that do the same job on other stores: Apache Pekko (JVM) and the library `eventsourcing` (Python).

Each runs as one process for a bench, so that it stays warm, and is asked inside that process, without a network between client
and actor: their figures are as good as they get. A process answers one line for each line it is asked; see bench/pekko.
"""

from __future__ import annotations

import asyncio
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

import msgspec

from bench.load import LoadResult
from bench.peers import SOURCES, find_program, folder_of, install
from bench.postgres import start_postgres
from bench.processes import ask, read_cpu_s, start

PeerName = Literal["pekko-leveldb", "pekko-leveldb-fsync", "pekko-postgresql", "eventsourcing-sqlite", "eventsourcing-postgresql"]

LABELS: Final[dict[PeerName, str]] = {
    "pekko-leveldb": "Pekko, LevelDB without fsync",
    "pekko-leveldb-fsync": "Pekko, LevelDB with fsync",
    "pekko-postgresql": "Pekko, PostgreSQL",
    "eventsourcing-sqlite": "eventsourcing, SQLite",
    "eventsourcing-postgresql": "eventsourcing, PostgreSQL",
}

HOW_JAVA: Final = "install a JDK 17 or newer, on Debian with `apt-get install openjdk-17-jdk-headless`"
HOW_MAVEN: Final = "install Maven, on Debian with `apt-get install maven`"

TIMEOUT_S: Final = 900.0
"""Seconds for one answer: writing a long history into PostgreSQL takes minutes."""

HEAP: Final = "-Xmx2g"
"""The same heap on every machine."""


@dataclass(frozen=True, slots=True)
class Peer:
    """A running peer with a fresh store."""

    process: asyncio.subprocess.Process

    async def load(self, *, clients: int, actors: int, seconds: float) -> tuple[LoadResult, float]:
        """Run a closed loop, and return what came back and the microseconds of CPU of one command."""
        before_s = read_cpu_s(self.process.pid)
        result = msgspec.json.decode(await self._ask(f"commands {clients} {actors} {seconds}"), type=LoadResult)
        return result, (read_cpu_s(self.process.pid) - before_s) * 1e6 / result.replies

    async def fill(self, prefix: str, *, actors: int, commits: int, events: int = 1) -> None:
        """Write histories of some new actors, interleaved."""
        await self._ask(f"fill {prefix} {actors} {commits} {events}")

    async def replay(self, prefix: str, *, actors: int, at_once: int, balance: int) -> float:
        """Start actors that were filled and return the seconds that their replay took."""
        return float(await self._ask(f"replay {prefix} {actors} {at_once} {balance}"))

    async def _ask(self, line: str) -> bytes:
        return await ask(self.process, line, timeout_s=TIMEOUT_S)


@asynccontextmanager
async def start_peer(name: PeerName) -> AsyncGenerator[Peer, None]:
    """Run a peer with a fresh store for the length of a `with` block.

    Raises:
        PeerMissing: it, or what it stands on, is not there; the message says how to get it.
    """
    library, _, store = name.partition("-")
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aether-bench-peer-")))
        command = await (_build_pekko_command(folder) if library == "pekko" else _build_eventsourcing_command())
        place = await stack.enter_async_context(start_postgres()) if store == "postgresql" else f"{folder}/store"
        yield Peer(await stack.enter_async_context(start(*command, store, place, folder=folder, ready=b"ready")))


async def _build_pekko_command(folder: Path) -> tuple[str, ...]:
    program, java = await find_pekko(), find_program("java", HOW_JAVA)
    # LevelDB's native library is unpacked below java.io.tmpdir; into our folder, so that it goes with it.
    return (java, HEAP, f"-Djava.io.tmpdir={folder}", "-cp", f"{program}/target/classes:{program}/lib/*", "aether.bench.Bench")


async def _build_eventsourcing_command() -> tuple[str, ...]:
    return (str(await find_eventsourcing() / "bin" / "python"), str(SOURCES / "eventsourcing_peer" / "peer.py"))


async def find_pekko() -> Path:
    """Return the folder of bench/pekko's build, made on demand.

    Raises:
        PeerMissing: there is no Maven, or the build failed.
    """
    source = SOURCES / "pekko"
    folder = folder_of("pekko", (path for path in source.rglob("*") if path.suffix in (".java", ".xml")))
    if not (folder / "lib").is_dir():
        maven = find_program("mvn", HOW_MAVEN)
        building = folder.with_name(f"{folder.name}.building")
        shutil.rmtree(building, ignore_errors=True)
        shutil.copytree(source, building)
        await install(maven, "-q", "-B", "compile", "dependency:copy-dependencies", "-DoutputDirectory=lib", folder=building)
        building.rename(folder)
    return folder


async def find_eventsourcing() -> Path:
    """Return the virtual environment of the Python peer, made on demand.

    Raises:
        PeerMissing: its packages could not be installed.
    """
    requirements = SOURCES / "eventsourcing_peer" / "requirements.txt"
    folder = folder_of("eventsourcing", [requirements])
    done = folder / ".installed"
    if not done.exists():
        shutil.rmtree(folder, ignore_errors=True)
        await install(sys.executable, "-m", "venv", str(folder), folder=SOURCES)
        await install(str(folder / "bin" / "pip"), "install", "-q", "--disable-pip-version-check", "--require-hashes", "-r", str(requirements), folder=SOURCES)
        done.touch()
    return folder
