"""Three real nats-servers that form a cluster, whose members a test may kill and start again.

A cluster takes seconds to start, so a whole run of tests shares one: each test gets an account of its own (`open_account`), in
which nothing of another test can be seen. The processes belong to no event loop, are ended by their ids, and end with us where
the system can do it.
"""

from __future__ import annotations

import json
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from urllib.request import urlopen

from aether_api.errors import StreamUnavailable
from aether_nats.embedded import build_configuration, find_program
from aether_nats.settings import NatsSettings
from tests.cluster.processes import ending_with_us, find_free_ports

NAMES: Final = ("one", "two", "three")
PASSWORD: Final = "test"

ACCOUNTS: Final = 256
"""Accounts of a cluster: more than a run has tests on it; an account that nobody uses costs the server next to nothing."""

HEALTHY_TIMEOUT_S: Final = 60.0
"""Seconds until all members have a leader and are level with it; 3 on a quiet machine."""

END_TIMEOUT_S: Final = 10.0
"""Seconds between SIGTERM and SIGKILL."""

ANSWER_TIMEOUT_S: Final = 2.0
"""Seconds for one question to a server's monitor."""

POLL_S: Final = 0.05
STARTS_MAX: Final = 3
"""Tries to start a cluster: between choosing a port and using it, somebody else may take it."""


@dataclass(slots=True)
class Member:
    """One server and its store."""

    name: str
    folder: Path
    client_port: int
    route_port: int
    monitor_port: int
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        """Where clients connect, without a user."""
        return f"nats://127.0.0.1:{self.client_port}"

    def run(self) -> None:
        """Start the process; harmless while it runs."""
        if self.process is None:
            command: list[str | Path] = [find_program(), "-c", self.folder / "server.conf", "-l", self.folder / "server.log"]
            self.process = subprocess.Popen(ending_with_us(command), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)

    def kill(self) -> None:
        """End the process without warning, as a crash would; harmless while it is down."""
        process, self.process = self.process, None
        if process is not None:
            process.kill()
            process.wait()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let the process stand still for the length of a `with` block; its sockets stay open."""
        if self.process is None:
            raise StreamUnavailable(f"server {self.name} of the cluster is not running")
        self.process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        """End the process in order, or by force; harmless while it is down."""
        if self.process is None:
            return
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(END_TIMEOUT_S)
        self.kill()

    def is_healthy(self) -> bool:
        """Tell whether it serves, knows a leader for everything, and is level with it."""
        if self.process is None or self.process.poll() is not None:
            raise StreamUnavailable(f"server {self.name} of the cluster is not running: {self._read_log_tail()}")
        with suppress(OSError):  # an answer that says no, too, is an HTTPError and thereby one
            self._ask("healthz")
            return bool(self.find_meta_leader())
        return False

    def find_meta_leader(self) -> str:
        """Return the name of the server that leads all JetStream, as this one sees it; empty while there is none."""
        return str(json.loads(self._ask("jsz"))["meta_cluster"].get("leader", ""))

    def _ask(self, what: str) -> bytes:
        with urlopen(f"http://127.0.0.1:{self.monitor_port}/{what}", timeout=ANSWER_TIMEOUT_S) as answer:
            return bytes(answer.read())

    def _read_log_tail(self) -> str:
        with suppress(OSError):
            return "\n".join((self.folder / "server.log").read_text(errors="replace").splitlines()[-10:])
        return "it wrote no log"


class NatsCluster:
    """A cluster that runs; `start` makes one and ends it."""

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self._accounts = iter(range(ACCOUNTS))

    @classmethod
    @contextmanager
    def start(cls) -> Iterator[NatsCluster]:
        """Run three servers for the length of a `with` block.

        Raises:
            StreamUnavailable: they do not find together; the message holds the end of a log.
        """
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="aether-cluster-")))
            for attempt in range(1, STARTS_MAX + 1):
                cluster = cls(_build_members(folder / str(attempt)))
                stack.callback(cluster.stop)
                try:
                    cluster.run()
                    cluster.wait_healthy()
                    break
                except StreamUnavailable:
                    cluster.stop()
                    if attempt == STARTS_MAX:
                        raise
            yield cluster

    def open_account(self) -> str:
        """Return the name of an account that nobody has used."""
        return f"user{next(self._accounts)}"

    def settings(self, account: str, *members: Member) -> NatsSettings:
        """Return how to connect to some members, or to any, within an account."""
        return NatsSettings(tuple(member.url for member in members or self.members), user=account, password=PASSWORD)

    def member(self, name: str) -> Member:
        """Return the member of that name."""
        return next(member for member in self.members if member.name == name)

    def run(self) -> None:
        """Start who is down; in the main thread, since the system ends a process with the thread that started it."""
        for member in self.members:
            member.run()

    def wait_healthy(self) -> None:
        """Wait until all members are level with a leader.

        Raises:
            StreamUnavailable: one of them is not, or has ended.
        """
        deadline_s = time.monotonic() + HEALTHY_TIMEOUT_S
        while not all(member.is_healthy() for member in self.members):
            if time.monotonic() > deadline_s:
                raise StreamUnavailable(f"the cluster was not healthy within {HEALTHY_TIMEOUT_S:g} s")
            time.sleep(POLL_S)

    def stop(self) -> None:
        """End all members."""
        for member in self.members:
            member.stop()


def _build_members(folder: Path) -> list[Member]:
    """Write the configuration of each member."""
    ports = find_free_ports(3 * len(NAMES))
    members = [Member(name, folder / name, *ports[3 * place : 3 * place + 3]) for place, name in enumerate(NAMES)]
    routes = [f"nats://127.0.0.1:{member.route_port}" for member in members]
    for member in members:
        member.folder.mkdir(parents=True)
        extra = (
            f"server_name: {member.name}\n"
            f"http: 127.0.0.1:{member.monitor_port}\n"
            f"cluster {{ name: aether, listen: 127.0.0.1:{member.route_port}, no_advertise: true, routes: {json.dumps(routes)} }}\n"
            f"accounts {{\n{_build_accounts()}\n}}\n"
        )
        (member.folder / "server.conf").write_text(build_configuration(member.folder, port=member.client_port, extra=extra))
    return members


def _build_accounts() -> str:
    return "\n".join(f"  ACCOUNT{number} {{ jetstream: enabled, users: [{{user: user{number}, password: {PASSWORD}}}] }}" for number in range(ACCOUNTS))
