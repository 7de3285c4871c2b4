"""Fills the event streams of a namespace with the commits of many actors, interleaved evenly: the hardest order for a reader.

The commits are what our runtime would have written. The sequences are known beforehand, since nobody else writes, so that the
appends need not wait for each other.

Usage: `python -m bench.populate JSON`, with the fields of `Population`; prints the number of events a second.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import msgspec
import uvloop

from aether_api.commit_index import CommitIndex
from aether_api.envelope import Commit, build_source, encode_commit
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_api.messages import format_time
from aether_api.subjects import event_subject, partition_of
from bench.account import NOTE
from bench.wire import BareClient, connect, parse_ack

IN_FLIGHT: Final = 512
"""Appends under way: the server is busy, and its queue stays short."""

SPACING_S: Final = 0.01
"""Seconds between two events of an actor, so that the window of known commands holds as many as with a busy actor, and no more."""


class Population(msgspec.Struct, frozen=True):
    """Which actors, and what they have lived through: `a0`, `a1`, ... each with equally many commits."""

    port: int
    namespace: str
    partitions: int
    actors: int
    commits: int
    events: int = 1


class _Actor:
    """Where one actor's log stands."""

    __slots__ = ("id", "index", "partition", "sequence", "source", "subject", "version")

    def __init__(self, population: Population, number: int) -> None:
        self.id = parse_actor_id(population.namespace, "account", f"a{number}")
        self.partition = partition_of(self.id, population.partitions)
        self.subject = event_subject(self.id, population.partitions).encode()
        self.source = build_source(self.id)
        self.index = CommitIndex()
        self.sequence = self.version = 0


@dataclass(frozen=True, slots=True)
class Prepared:
    """One commit, ready to be sent."""

    actor: ActorId
    lines: bytes
    subject: bytes
    payload: bytes


def build_commits(population: Population, now_s: float, note: Callable[[], str] = lambda: NOTE) -> Iterator[Prepared]:
    """Yield every commit in the order in which they must be stored; `note` gives what each event carries beside its amount."""
    actors = [_Actor(population, number) for number in range(population.actors)]
    sequences = [0] * population.partitions
    start_s = now_s - SPACING_S * population.commits * population.events
    for number in range(population.commits):
        for actor in actors:
            first = actor.version + 1
            actor.version += population.events
            time_s = start_s + SPACING_S * actor.version  # a commit has one time, as those of a VM
            payload = b"[" + b",".join(_build_event(actor, version, time_s, note()) for version in range(first, actor.version + 1)) + b"]"
            commit = Commit(
                f"{number:016x}", actor.id, actor.sequence, first, actor.version, actor.index, Epoch(0), "0123456789abcdef/0123456789abcdef", "account@0123456789abcdef", payload
            )
            sequences[actor.partition] += 1
            actor.sequence = sequences[actor.partition]
            actor.index = actor.index.appended(actor.sequence)
            lines, payload = encode_commit(commit)
            yield Prepared(actor.id, lines, actor.subject, payload)


def sequences_of(population: Population) -> dict[str, tuple[int, list[int]]]:
    """Return partition and sequences of each actor's commits, as `build_commits` places them."""
    partitions = [partition_of(parse_actor_id(population.namespace, "account", f"a{number}"), population.partitions) for number in range(population.actors)]
    sizes = [partitions.count(partition) for partition in range(population.partitions)]
    seen = [0] * population.partitions
    found: dict[str, tuple[int, list[int]]] = {}
    for number, partition in enumerate(partitions):
        seen[partition] += 1
        found[f"a{number}"] = (partition, [seen[partition] + sizes[partition] * commit for commit in range(population.commits)])
    return found


async def populate(client: BareClient, population: Population) -> None:
    """Store all commits."""
    slots = asyncio.Semaphore(IN_FLIGHT)
    failed: list[Exception] = []

    def send(commit: Prepared) -> None:
        def on_ack(_headers: bytes, ack: bytes) -> None:
            del client.replies[token]
            slots.release()
            try:
                parse_ack(ack)
            except Exception as exc:  # noqa: BLE001  # it is raised again where the loop runs
                failed.append(exc)

        inbox, token = client.expect(on_ack)
        client.publish_with(commit.lines, commit.subject, commit.payload, inbox)

    for commit in build_commits(population, time.time()):
        await slots.acquire()
        if failed:
            raise failed[0]
        send(commit)
    for _ in range(IN_FLIGHT):
        await slots.acquire()
    if failed:
        raise failed[0]


def _build_event(actor: _Actor, version: int, unix_s: float, note: str) -> bytes:
    return (
        f'{{"specversion":"1.0","id":"{version}","source":"{actor.source}","type":"Deposited","time":"{format_time(unix_s)}",'
        f'"data":{{"amount":5,"note":"{note}"}},"commandid":"{version:016x}"}}'
    ).encode()


async def main(text: str) -> None:
    """Fill the streams and print how fast that went."""
    population = msgspec.json.decode(text, type=Population)
    client = await connect(population.port)
    began = time.perf_counter()
    await populate(client, population)
    print(round(population.actors * population.commits * population.events / (time.perf_counter() - began)), flush=True)
    client.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
