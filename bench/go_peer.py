"""What NATS itself reaches with its Go client: `nats bench` for appends, an ordered consumer for reading one subject.

`nats bench` only appends, to one stream, without an expected sequence: the limit of the server, not of a runtime.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aether_api.identity import parse_actor_id
from aether_api.subjects import event_stream, event_subject, event_wildcard, partition_of
from bench.errors import BenchFailed
from bench.load import LoadResult
from bench.peers import CACHE, SOURCES, find_program, folder_of, install
from bench.populate import Population
from bench.processes import run, run_whole

HOW: Final = "install Go 1.26 or newer"


NATS_BENCH_RATE: Final = 30_000
NATS_BENCH_RATE_ALONE: Final = 4_000
"""Appends a second that are expected of `nats bench`, with many outstanding and with one; only the length of its runs depends on them."""

_RATE: Final = re.compile(r"stats: ([\d,]+) msgs/sec")
_MEDIAN: Final = re.compile(r"P50[: ]+([\d,.]+)us")

NATS_CLI: Final = "github.com/nats-io/natscli/nats@v0.5.1"
"""The program with `nats bench`."""


async def find_go_reader() -> str:
    """Return the path of bench/go's program, built on demand.

    Raises:
        PeerMissing: there is no Go, or the build failed.
    """
    source = SOURCES / "go"
    program = folder_of("go", source.glob("*.*")) / "reader"
    if not program.exists():
        await install(find_program("go", HOW), "build", "-o", str(program), ".", folder=source)
    return str(program)


async def read_in_order(program: str, url: str, population: Population, *, decode: bool) -> float:
    """Read the first actor's commits and return the seconds that it took.

    Raises:
        BenchFailed: the events are not what was stored.
    """
    actor = parse_actor_id(population.namespace, "account", "a0")
    stream = event_stream(population.namespace, partition_of(actor, population.partitions))
    arguments = [program, url, stream, event_subject(actor, population.partitions), str(population.commits)]
    seconds, balance = (await run(*arguments, *(["decode"] if decode else []))).split()
    if decode and int(balance) != 5 * population.commits * population.events:
        raise BenchFailed(f"the Go reader found a balance of {int(balance)}")
    return float(seconds)


async def find_nats_cli() -> str:
    """Return the path of the `nats` program, built on demand.

    Raises:
        PeerMissing: there is no Go, or the build failed.
    """
    folder = CACHE / f"nats-cli-{NATS_CLI.rpartition('@')[2]}"
    program = folder / "nats"
    if not program.exists():
        folder.mkdir(parents=True, exist_ok=True)
        await install(find_program("env", ""), f"GOBIN={folder}", find_program("go", HOW), "install", NATS_CLI, folder=folder)
    return str(program)


@dataclass(frozen=True, slots=True)
class NatsBench:
    """`nats bench` as the side of a closed loop, on the first event stream of a namespace."""

    program: str
    url: str
    namespace: str

    async def load(self, *, clients: int, actors: int, seconds: float) -> tuple[LoadResult, float]:
        """Append with as many acks outstanding as there are clients; it counts messages, so the seconds are about right only."""
        messages = max(clients, round(seconds * (NATS_BENCH_RATE if clients > 1 else NATS_BENCH_RATE_ALONE)))
        how = ["async", "--batch", str(clients)] if clients > 1 else ["sync"]
        place = [
            "--stream",
            event_stream(self.namespace, 0),
            "--multisubject",
            "--multisubjectmax",
            str(actors),
            event_wildcard(self.namespace, 0).removesuffix(".*.*") + ".account",
        ]
        output = await run_whole(self.program, "bench", "js", "pub", *how, "--server", self.url, "--msgs", str(messages), "--size", "200", "--no-progress", *place, quiet=True)
        rate, median = _RATE.search(output), _MEDIAN.search(output)
        if rate is None:
            raise BenchFailed(f"nats bench said nothing of a rate: {output[-500:]}")
        return LoadResult(float(rate[1].replace(",", "")), messages, float(median[1].replace(",", "")) / 1000 if median else 0.0, 0.0, 0.0), 0.0
