"""The Go client's ordered consumer: what a reader of one subject can reach."""

from __future__ import annotations

from typing import Final

from aether_api.identity import parse_actor_id
from aether_api.subjects import event_stream, event_subject, partition_of
from bench.errors import BenchFailed
from bench.peers import CACHE, SOURCES, find_program, folder_of, install
from bench.populate import Population
from bench.processes import run

HOW: Final = "install Go 1.26 or newer"


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
