"""Sends events at an even pace, each with the moment of sending in it: appends to our streams, or bare publishes.

Both send the same bytes from the same loop, so what differs is the way of the message.

Usage: `python -m bench.emitter JSON`, with the fields of `Emission`; prints `ready`, then for each line on its input sends for
`seconds` and answers with the number of events.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Final

import msgspec
import uvloop

from aether_api.subjects import stored_subject
from bench.errors import BenchFailed
from bench.populate import Population, Prepared, build_commits
from bench.wire import BareClient, connect, parse_ack

COMMITS_MAX: Final = 1_000_000
"""Commits of one actor at most: more than any run sends."""


class Emission(msgspec.Struct, frozen=True):
    """What to send.

    Attributes:
        append: append to the event streams, and let the server announce it; else publish on `stored` directly.
        rate: events a second.
    """

    port: int
    namespace: str
    partitions: int
    actors: int
    rate: float
    seconds: float
    append: bool


class _Emitter:
    """Sends one commit after the other."""

    def __init__(self, client: BareClient, emission: Emission) -> None:
        self._client = client
        self._emission = emission
        population = Population(emission.port, emission.namespace, emission.partitions, emission.actors, COMMITS_MAX)
        self._commits = build_commits(population, time.time(), note=lambda: f"{time.perf_counter_ns():067d}")
        self.failed: BenchFailed | None = None

    async def run(self) -> int:
        """Send for some seconds at an even pace and return the number of events."""
        count = round(self._emission.rate * self._emission.seconds)
        began = self._client.loop.time()
        for number, commit in zip(range(count), self._commits, strict=False):
            self._send(commit)
            if self.failed is not None:
                raise self.failed
            await asyncio.sleep(max(0.0, began + (number + 1) / self._emission.rate - self._client.loop.time()))
        await self._client.ping()
        return count

    def _send(self, commit: Prepared) -> None:
        client = self._client
        if not self._emission.append:
            client.publish_with(commit.lines, stored_subject(commit.actor).encode(), commit.payload, b"")
            return

        def take(_headers: bytes, ack: bytes) -> None:
            del client.replies[token]
            try:
                parse_ack(ack)
            except BenchFailed as exc:
                self.failed = exc  # raised again where the loop runs

        inbox, token = client.expect(take)
        client.publish_with(commit.lines, commit.subject, commit.payload, inbox)


async def main(text: str) -> None:
    """Send whenever a line comes, until the input ends."""
    emission = msgspec.json.decode(text, type=Emission)
    client = await connect(emission.port)
    emitter = _Emitter(client, emission)
    print("ready", flush=True)
    while await client.loop.run_in_executor(None, sys.stdin.readline):
        print(await emitter.run(), flush=True)


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
