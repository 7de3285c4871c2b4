"""Commands at a set rate, whether or not earlier ones were answered: what each cost its sender, and whether it took effect once."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aether_api.envelope import StoredCommit
from aether_api.errors import AetherError
from aether_api.messages import Reply
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from bench.results import find_quantile
from tests.e2e.bank import Bank, Place, wait_until
from tests.histories.invariants import check_answers, check_log

ACTORS: Final = int(os.environ.get("AETHER_E2E_ACTORS", "100"))
"""Accounts of each test; docs/failover.md says what 1,000 gave."""

SETTLE_S: Final = 400.0
"""Seconds for all pods and actors to be at rest: what an earlier test broke may have to restart first, more and more slowly, and gets its share after five
minutes at most."""

BEFORE_S: Final = 2.0
"""Seconds of traffic before something happens, and after it."""

PER_S: Final = 200.0
"""Commands a second, in all."""

TIMEOUT_S: Final = 60.0
"""Seconds after which a command counts as an error: far more than any failure may cost, so that a slow answer is told from none."""

IN_FLIGHT: Final = 5_000
"""Commands that may wait for their answers; with more, sending stops and the test fails instead of the machine."""


@dataclass(frozen=True, slots=True)
class Answered:
    """A command and what became of it.

    Attributes:
        began: unix seconds.
    """

    name: str
    began: float
    took_s: float
    reply: Reply

    @property
    def ended(self) -> float:
        """When the answer came, in unix seconds."""
        return self.began + self.took_s


@dataclass(slots=True)
class Traffic:
    """What was sent to some accounts so far.

    Attributes:
        places: where the accounts were before anything happened.
    """

    bank: Bank
    connection: NatsConnection
    names: Sequence[str]
    places: dict[str, Place]
    answered: list[Answered] = field(default_factory=list[Answered])
    errors: list[str] = field(default_factory=list[str])

    def part(self, names: Sequence[str]) -> Traffic:
        """Return a traffic to some of the accounts, with nothing sent yet."""
        return Traffic(self.bank, self.connection, names, self.places)

    def read_moved(self) -> set[str]:
        """Return which accounts are elsewhere now, or in another epoch."""
        places = self.bank.read_places(self.names)
        return {name for name, place in places.items() if (place.pod_uid, place.epoch) != (self.places[name].pod_uid, self.places[name].epoch)}

    def wait_versions(self, logs: dict[str, list[StoredCommit]]) -> None:
        """Wait until every status tells the version of the log."""
        versions = {name: commits[-1].last_version for name, commits in logs.items()}

        def find_late() -> dict[str, Place]:
            return {name: place for name, place in self.bank.read_places(self.names).items() if place.version != versions[name]}

        wait_until(lambda: f"the log holds {versions}; these statuses do not follow: {find_late()}", lambda: not find_late())

    async def send_all(self, command: str = "Deposit") -> None:
        """Send every account one command, all at once, and wait for the answers."""
        async with asyncio.TaskGroup() as tasks:
            for name in self.names:
                tasks.create_task(self._send(name, command), name=f"{command} {name}")

    def add(self, other: Traffic) -> None:
        """Count what another traffic sent to the same accounts as this one's."""
        self.answered += other.answered
        self.errors += other.errors

    async def run(self, per_s: float, ended: asyncio.Event) -> None:
        """Send deposits to one account after the other until told to end, then wait for what is under way."""
        began_s = time.monotonic()
        async with asyncio.TaskGroup() as sends:
            under_way: set[asyncio.Task[None]] = set()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, began_s + number / per_s - time.monotonic()))
                if ended.is_set():
                    return
                assert len(under_way) < IN_FLIGHT, f"{IN_FLIGHT} commands wait for their answers"
                task = sends.create_task(self._send(self.names[number % len(self.names)], "Deposit"), name=f"deposit {number}")
                under_way.add(task)
                task.add_done_callback(under_way.discard)

    def describe(self, since: float = 0.0) -> str:
        """Return a line of figures about what was sent since a time (unix seconds)."""
        took_s = sorted(one.took_s for one in self.answered if one.began >= since)
        return f"{len(took_s):,} commands, {len(self.errors)} errors; p50 {find_quantile(took_s, 0.5) * 1000:.0f} ms, p99 {find_quantile(took_s, 0.99) * 1000:.0f} ms, longest {took_s[-1]:.2f} s"

    async def check(self) -> dict[str, list[StoredCommit]]:
        """Assert that no command failed and that each took effect once, as its answer says; return the logs."""
        assert self.errors == [], self.errors[:3]
        logs = {name: await self.bank.read_commits(self.connection, name) for name in self.names}
        for name, commits in logs.items():
            check_log(commits)
            check_answers(commits, (one.reply for one in self.answered if one.name == name))
        stored = sum(len(commit.events()) for commits in logs.values() for commit in commits)
        assert stored == len(self.answered), "the log does not hold what was answered"
        return logs

    async def _send(self, name: str, command: str) -> None:
        began, began_s = time.time(), time.monotonic()
        payload = {"owner": name} if command == "Open" else {"amount": 1}
        try:
            reply = await CommandClient(self.connection).send(self.bank.actor(name), command, payload, timeout_s=TIMEOUT_S)
        except AetherError as exc:
            self.errors.append(f"{command} to {name} after {time.monotonic() - began_s:.2f} s: {exc!r}")
            return
        if reply.outcome != "accepted":
            self.errors.append(f"{command} to {name}: {reply}")
        self.answered.append(Answered(name, began, time.monotonic() - began_s, reply))


@asynccontextmanager
async def open_accounts(bank: Bank, prefix: str, count: int = ACTORS) -> AsyncIterator[Traffic]:
    """Apply accounts, wait until they are at rest, and open them; they are deleted afterwards."""
    names = [f"{prefix}-{number}" for number in range(count)]
    try:
        await asyncio.to_thread(bank.create_crowd, prefix, names)
        places = await asyncio.to_thread(bank.wait_settled, names, timeout_s=SETTLE_S)
        async with bank.connect() as connection:
            traffic = Traffic(bank, connection, names, places)
            await traffic.send_all("Open")
            yield traffic
    finally:
        await asyncio.to_thread(bank.delete_crowd, prefix)


@asynccontextmanager
async def steady_traffic(traffic: Traffic, *, per_s: float = PER_S) -> AsyncIterator[None]:
    """Send deposits for the length of a `with` block; all are answered, or failed, at its end."""
    ended = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(traffic.run(per_s, ended), name="traffic")
        yield
        ended.set()


@asynccontextmanager
async def aside(manager: AbstractContextManager[None]) -> AsyncIterator[None]:
    """Enter and leave something in a thread, so that what it does on the way keeps no traffic waiting."""
    await asyncio.to_thread(manager.__enter__)
    try:
        yield
    finally:
        await asyncio.to_thread(manager.__exit__, None, None, None)
