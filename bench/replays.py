"""The benches of replay: one long history, many short ones, and the memory that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import msgspec

from aether_api.identity import parse_actor_id
from aether_api.subjects import event_subject, snapshot_stream
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.settings import NatsSettings
from aether_nats.streams import PARTITIONS_DEFAULT, StreamPlan
from bench.bare_reads import Reads
from bench.errors import PeerMissing
from bench.go_peer import find_go_reader, read_in_order
from bench.populate import Population
from bench.processes import ask, run_python, start_python
from bench.replay_ours import ReplayResult, Replays
from bench.results import Comparison, Line, Sample, build_limit_line, build_line, build_missing_line
from bench.rounds import interleave
from bench.scale import Scale
from bench.sides import MANIFESTS, make_streams

EVENTS: Final = 100_000
"""Events of the one long history."""

BATCH_EVENTS: Final = 10
"""Events of one commit where a commit holds several."""

GO_SHARE: Final = 0.8
"""Least share of the Go client's ordered consumer, which decodes nothing."""

BATCH_FACTOR: Final = 3.0
"""Least multiple of the rate with one event a commit, where a commit holds `BATCH_EVENTS`."""

COLD_ACTORS: Final = 10_000
COLD_EVENTS: Final = 20
COLD_AT_ONCE: Final = 64
"""Actors of a cold start, their events, and how many actors are read at once."""

COLD_SHARE: Final = 0.6
"""Least share of the bare known-sequence loop."""

WRITER_SHARE: Final = 0.5
"""Least share of its rate that a writer keeps beside a cold start."""

MILLION: Final = 1_000_000
MEMORY_MB: Final = 50.0
"""Events of the longest history, and the memory that its replay may take beyond a warm runtime."""

REPLAY_TIMEOUT_S: Final = 600.0
"""Seconds after which a replay counts as broken."""


@dataclass(frozen=True, slots=True)
class History:
    """Streams that were filled, and who may read them."""

    server: EmbeddedServer
    population: Population

    @property
    def events(self) -> int:
        """Events of all actors."""
        return self.population.actors * self.population.commits * self.population.events


async def run_replay_one(scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare the replay of one long history with the Go client's ordered consumer, and with itself at ten events a commit."""
    commits = scale.of(EVENTS, at_least=BATCH_EVENTS)
    async with EmbeddedServer.start() as server:
        single = await _populate(server, "single", actors=1, commits=commits)
        batch = await _populate(server, "batch", actors=1, commits=commits // BATCH_EVENTS, events=BATCH_EVENTS)
        ours = {"single": partial(_measure_ours, single), "batch": partial(_measure_ours, batch)}
        try:
            program = await find_go_reader()
        except PeerMissing as exc:
            samples = await interleave(scale.rounds, ours)
            yield build_missing_line(Comparison("replay-one", "events/s", "Go ordered consumer", GO_SHARE), str(exc))
        else:
            samples = await interleave(
                scale.rounds, {**ours, "go": partial(_measure_go, program, single, decode=False), "go decoded": partial(_measure_go, program, single, decode=True)}
            )
            yield build_line(Comparison("replay-one", "events/s", "Go ordered consumer", GO_SHARE), samples["single"], samples["go"])
            yield build_line(Comparison("replay-one", "events/s", "Go ordered consumer that decodes and applies"), samples["single"], samples["go decoded"])
        yield build_line(Comparison("replay-one", "events/s", f"one event a commit ({BATCH_EVENTS} here)", BATCH_FACTOR), samples["batch"], samples["single"])


async def run_cold_start(scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare the start of many interleaved actors with the bare known-sequence loop, and watch a writer beside it."""
    async with EmbeddedServer.start() as server:
        history = await _populate(server, "cold", actors=scale.of(COLD_ACTORS), commits=COLD_EVENTS)
        samples = await interleave(scale.rounds, {"ours": partial(_measure_ours, history), "bare": partial(_measure_bare, history)})
        yield build_line(Comparison("cold-start", "events/s", "bare known-sequence loop", COLD_SHARE), samples["ours"], samples["bare"])
        beside, alone = await _measure_writer(history, scale)
        yield build_line(Comparison("cold-start", "appends/s", "the same writer alone", WRITER_SHARE), beside, alone)


async def run_replay_million(scale: Scale) -> AsyncGenerator[Line, None]:
    """Measure how much memory the replay of a very long history takes."""
    async with EmbeddedServer.start() as server:
        history = await _populate(server, "million", actors=1, commits=scale.of(MILLION))
        samples = await interleave(1, {"ours": partial(_measure_growth, history)}, warm_up=False)
        yield build_limit_line(Comparison("replay-million", "MB", "memory budget", 1.0, at_most=True), samples["ours"], MEMORY_MB)


async def _populate(server: EmbeddedServer, namespace: str, *, actors: int, commits: int, events: int = 1) -> History:
    population = Population(server.port, namespace, PARTITIONS_DEFAULT, actors, commits, events)
    await make_streams(server, namespace, StreamPlan(broadcast=False))
    await run_python("-m", "bench.populate", msgspec.json.encode(population).decode(), timeout_s=REPLAY_TIMEOUT_S)
    return History(server, population)


async def _measure_ours(history: History) -> Sample:
    result = await _replay(history)
    return Sample(history.events / result.seconds)


async def _measure_growth(history: History) -> Sample:
    result = await _replay(history)
    return Sample(result.peak_mb - result.before_mb)


async def _replay(history: History) -> ReplayResult:
    await _drop_snapshots(history)
    async with _start_replayer(history) as process:
        return msgspec.json.decode(await ask(process, timeout_s=REPLAY_TIMEOUT_S), type=ReplayResult)


@asynccontextmanager
async def _start_replayer(history: History) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Start a runtime that waits for the word to replay, and kill it afterwards, so that it leaves no snapshots."""
    population = history.population
    replays = Replays(history.server.url, population.namespace, str(MANIFESTS), population.actors, population.commits * population.events, permits=COLD_AT_ONCE)
    environment = {"AETHER_LOG_LEVEL": "ERROR"}
    async with start_python("-m", "bench.replay_ours", msgspec.json.encode(replays).decode(), environment=environment, ready=b"ready") as process:
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()


async def _measure_bare(history: History) -> Sample:
    text = msgspec.json.encode(Reads(history.population, COLD_AT_ONCE)).decode()
    return Sample(history.events / float(await run_python("-m", "bench.bare_reads", text)))


async def _measure_go(program: str, history: History, *, decode: bool) -> Sample:
    return Sample(history.events / await read_in_order(program, history.server.url, history.population, decode=decode))


async def _measure_writer(history: History, scale: Scale) -> tuple[list[Sample], list[Sample]]:
    """Return a writer's rates beside a cold start and alone, in turns."""
    beside: list[Sample] = []
    alone: list[Sample] = []
    writer_id = parse_actor_id(history.population.namespace, "account", "writer")
    subject = event_subject(writer_id, history.population.partitions)
    async with start_python("-m", "bench.bare_writer", str(history.server.port), subject, ready=b"ready") as writer:
        for _ in range(scale.rounds):
            await _drop_snapshots(history)
            async with _start_replayer(history) as replayer:
                await ask(writer)
                await ask(replayer, timeout_s=REPLAY_TIMEOUT_S)
                beside.append(Sample(float(await ask(writer))))
            await ask(writer)
            await asyncio.sleep(scale.seconds)
            alone.append(Sample(float(await ask(writer))))
    return beside, alone


async def _drop_snapshots(history: History) -> None:
    connection = await NatsConnection.open(NatsSettings((history.server.url,), "bench"))
    try:
        await JetStream(connection).purge(snapshot_stream(history.population.namespace), ">")
    finally:
        await connection.close()
