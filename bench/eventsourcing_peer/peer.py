"""The Python library `eventsourcing` as a process that is asked to do one thing after another; it runs in an environment of its own.

The same protocol as bench/pekko. The library's interface is synchronous and saves one aggregate at a time, so a closed loop of
many clients is one loop over their aggregates, which it holds in memory: the fastest way to use it.

Usage: `python peer.py sqlite FILE` or `python peer.py postgresql HOST:PORT`.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Final

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

AMOUNT: Final = 5
NOTE: Final = "x" * 67


class Account(Aggregate):
    """The account of the benches."""

    class Deposited(Aggregate.Event):
        """A deposit was made."""

        amount: int
        note: str

    def __init__(self) -> None:
        self.balance = 0

    @event(Deposited)
    def deposit(self, amount: int, note: str) -> None:
        """Put money in."""
        self.balance += amount


class Peer:
    """A bank in one store."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._bank: Application = Application(env=environment)
        self._live: list[Account] = []
        self._filled: dict[str, list[object]] = {}

    def commands(self, clients: str, actors: str, seconds: str) -> str:
        """Deposit into one account after the other and return the result of the loop."""
        while len(self._live) < int(actors):
            self._live.append(self._open())
        times: list[int] = []
        began = now = time.perf_counter_ns()
        end = began + int(float(seconds) * 1e9)
        while now < end:
            account = self._live[len(times) % int(actors)]
            account.deposit(AMOUNT, NOTE)
            self._bank.save(account)
            before, now = now, time.perf_counter_ns()
            times.append(now - before)
        ordered = sorted(times)
        return json.dumps({"rate": len(times) / ((now - began) / 1e9), "replies": len(times), "p50_ms": _at(ordered, 0.5), "p99_ms": _at(ordered, 0.99), "cpu_us": 0})

    def fill(self, prefix: str, actors: str, commits: str, events: str) -> str:
        """Write histories, interleaved."""
        accounts = [self._open() for _ in range(int(actors))]
        for _ in range(int(commits)):
            for account in accounts:
                for _ in range(int(events)):
                    account.deposit(AMOUNT, NOTE)
                self._bank.save(account)
        self._filled[prefix] = [account.id for account in accounts]
        return "ok"

    def replay(self, prefix: str, actors: str, at_once: str, balance: str) -> str:
        """Load the aggregates that were filled and return the seconds it took."""
        began = time.perf_counter()
        for number in self._filled[prefix][: int(actors)]:
            account = self._bank.repository.get(number)
            if account.balance != int(balance):
                raise SystemExit(f"an account has {account.balance} after its replay, not {balance}")
        return str(time.perf_counter() - began)

    def _open(self) -> Account:
        account = Account()
        self._bank.save(account)
        return account


def _at(ordered: list[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1e6


def build_environment(store: str, place: str) -> dict[str, str]:
    """Return the library's settings; durability is each store's default."""
    if store == "sqlite":
        return {"PERSISTENCE_MODULE": "eventsourcing.sqlite", "SQLITE_DBNAME": place}
    host, _, port = place.rpartition(":")
    return {
        "PERSISTENCE_MODULE": "eventsourcing.postgres",
        "POSTGRES_DBNAME": "postgres",
        "POSTGRES_HOST": host,
        "POSTGRES_PORT": port,
        "POSTGRES_USER": "bench",
        "POSTGRES_PASSWORD": "unused",
    }


def main(store: str, place: str) -> None:
    """Answer each line of the input with one line."""
    peer = Peer(build_environment(store, place))
    answers = {"commands": peer.commands, "fill": peer.fill, "replay": peer.replay}
    print("ready", flush=True)
    for line in sys.stdin:
        name, *arguments = line.split()
        print(answers[name](*arguments), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
