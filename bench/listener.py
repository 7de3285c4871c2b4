"""Notes how long events were on their way: our subscriber to stored events, or a bare subscriber.

The moment of sending is in each event; on one machine all processes read the same monotonic clock. Our side is the event bus, which
decodes what it gets and watches over order and losses; the bare one looks for the moment alone.

Usage: `python -m bench.listener KIND URL NAMESPACE`; prints `ready`, then answers each line of its input with a `Delivered` as JSON
and forgets what it has seen.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Final
from urllib.parse import urlsplit

import msgspec
import uvloop

from aether_api.identity import ActorId, ModelName, Namespace
from aether_api.subjects import stored_subject
from aether_nats.connection import NatsConnection
from aether_nats.deliveries import EventStored
from aether_nats.event_bus import EventBus
from aether_nats.event_subscription import EventSubscription
from aether_nats.settings import NatsSettings
from bench.errors import BenchFailed
from bench.results import find_quantile
from bench.wire import connect

_FIELD: Final = b'"note":"'

Note = Callable[[str | bytes], None]
"""Takes the note of an event that has arrived."""


class Delivered(msgspec.Struct, frozen=True):
    """How many events came, and their times in milliseconds."""

    count: int
    p50_ms: float
    p99_ms: float


@asynccontextmanager
async def listen_bare(url: str, namespace: str, note: Note) -> AsyncGenerator[None, None]:
    """Subscribe with the bare client."""
    client = await connect(urlsplit(url).port or 4222)

    def take(_subject: bytes, _reply: bytes, _headers: bytes, payload: bytes) -> None:
        start = payload.find(_FIELD) + len(_FIELD)
        note(payload[start : payload.find(b'"', start)])

    client.subscribe(stored_subject(ActorId(Namespace(namespace), ModelName("*"), "*")).encode(), take)
    await client.ping()
    yield
    client.close()


@asynccontextmanager
async def listen_ours(url: str, namespace: str, note: Note) -> AsyncGenerator[None, None]:
    """Subscribe as users do: events in order, decoded, with every loss noticed."""
    connection = await NatsConnection.open(NatsSettings((url,), "bench listener"))
    async with EventBus(connection).subscribe_to_event_stored(namespace) as subscription, asyncio.TaskGroup() as tasks:
        work = tasks.create_task(_take_all(subscription, note), name="subscriber")
        yield
        work.cancel()
    await connection.close()


async def _take_all(subscription: EventSubscription, note: Note) -> None:
    async for item in subscription:
        if not isinstance(item, EventStored):
            raise BenchFailed(f"the subscriber was told {item}")
        note(str(item.event.fields()["note"]))


async def main(kind: str, url: str, namespace: str) -> None:
    """Listen, and report whenever a line comes, until the input ends."""
    times: list[int] = []

    def note(text: str | bytes) -> None:
        times.append(time.perf_counter_ns() - int(text))

    async with (listen_ours if kind == "ours" else listen_bare)(url, namespace, note):
        print("ready", flush=True)
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            print(msgspec.json.encode(_summarize(times)).decode(), flush=True)
            times.clear()


def _summarize(times: list[int]) -> Delivered:
    ordered = sorted(times)
    at = [find_quantile(ordered, share) / 1e6 if ordered else 0.0 for share in (0.5, 0.99)]
    return Delivered(len(ordered), at[0], at[1])


if __name__ == "__main__":
    uvloop.run(main(*sys.argv[1:4]))
