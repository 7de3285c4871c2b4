"""The bare known-sequence loop: reads many actors' commits by Direct Get at sequences that it was told, decodes and applies them.

What the fastest possible cold start would do if it knew where everything lies. It reads the same messages as our runtime
but looks at no header, checks nothing, and keeps only the balance.

Usage: `python -m bench.bare_reads JSON`, with the fields of `Reads`; prints the seconds it took.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time

import msgspec
import uvloop

from aether_api.subjects import event_stream
from bench.account import Change
from bench.errors import BenchFailed
from bench.populate import Population, sequences_of
from bench.wire import BareClient, connect


class Reads(msgspec.Struct, frozen=True):
    """Whose commits to read, and how many actors at once."""

    population: Population
    at_once: int


class _Entry(msgspec.Struct):
    type: str
    data: Change


_decode = msgspec.json.Decoder(list[_Entry]).decode


class _Reader:
    """Reads one actor after another; several of them share a connection."""

    def __init__(self, client: BareClient, reads: Reads) -> None:
        self._client = client
        self._streams = [f"$JS.API.DIRECT.GET.{event_stream(reads.population.namespace, partition)}".encode() for partition in range(reads.population.partitions)]
        self._actors = iter(sequences_of(reads.population).values())
        self._left = reads.population.actors
        self._done: asyncio.Future[None] = client.loop.create_future()
        self.balances: list[int] = []

    async def run(self, at_once: int) -> None:
        """Read all actors."""
        for partition, sequences in itertools.islice(self._actors, at_once):
            self._read(partition, sequences)
        await self._done

    def _read(self, partition: int, sequences: list[int]) -> None:
        client, subject = self._client, self._streams[partition]
        payloads: list[bytes] = []

        def take(_headers: bytes, payload: bytes) -> None:
            payloads.append(payload)
            if len(payloads) == len(sequences):
                for token in tokens:
                    del client.replies[token]
                self._finish(payloads)

        tokens: list[bytes] = []
        for sequence in sequences:
            inbox, token = client.expect(take)
            tokens.append(token)
            client.publish(subject, b'{"seq":%d}' % sequence, inbox)

    def _finish(self, payloads: list[bytes]) -> None:
        balance = 0
        for payload in payloads:
            for entry in _decode(payload):
                balance += entry.data.amount if entry.type == "Deposited" else -entry.data.amount
        self.balances.append(balance)
        self._left -= 1
        found = next(self._actors, None)
        if found is not None:
            self._read(*found)
        elif not self._left:
            self._done.set_result(None)


async def main(text: str) -> None:
    """Read everything once and print the seconds."""
    reads = msgspec.json.decode(text, type=Reads)
    client = await connect(reads.population.port)
    reader = _Reader(client, reads)
    began = time.perf_counter()
    await reader.run(reads.at_once)
    took_s = time.perf_counter() - began
    if set(reader.balances) != {5 * reads.population.commits * reads.population.events}:
        raise BenchFailed(f"balances are wrong: {sorted(set(reader.balances))[:5]}")
    print(took_s, flush=True)
    client.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
