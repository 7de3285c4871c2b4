"""The benches of replay: one long history, many short ones, and the memory that it takes."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
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
from bench.actor_peers import LABELS, Peer, PeerName, start_peer
from bench.bare_reads import Reads
from bench.commands import WARM_UP
from bench.errors import PeerMissing
from bench.go_peer import find_go_reader, read_in_order
from bench.populate import Population
from bench.processes import ask, run_python, start_python
from bench.replay_ours import ReplayResult, Replays
from bench.results import Comparison, Line, Sample, build_limit_line, build_line, build_missing_line
from bench.rounds import Measure, interleave
from bench.scale import Scale
from bench.sides import MANIFESTS, make_streams, profile_path

EVENTS: Final = 100_000
"""Events of the one long history."""

BATCH_EVENTS: Final = 10
"""Events of one commit where a commit holds several."""

GO_SHARE: Final = 0.8
"""Least share of the Go client's ordered consumer, which decodes nothing."""

BATCH_FACTOR: Final = 3.0
"""Least multiple of the rate with one event a commit, where a commit holds `BATCH_EVENTS`."""

REPLAY_PEERS: Final[tuple[tuple[PeerName, float | None], ...]] = (("pekko-leveldb", 2.0), ("pekko-postgresql", None), ("eventsourcing-sqlite", None))
"""Peers that replay one long history, and the ratio to each that is asked for."""

COLD_PEERS: Final[tuple[tuple[PeerName, float | None], ...]] = (("pekko-leveldb", None), ("eventsourcing-sqlite", None))
"""Peers that start many actors."""

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

IDLE_VMS: Final = 100_000
IDLE_BYTES: Final = 2048.0
"""Idle VMs in one process, and the bytes that each may take beyond its state."""

REPLAY_TIMEOUT_S: Final = 600.0
"""Seconds after which a replay counts as broken."""


@dataclass(frozen=True, slots=True)
class History:
    """Streams that were filled, and who may read them."""

    server: EmbeddedServer
    population: Population
    profile: str = ""

    @property
    def events(self) -> int:
        """Events of all actors."""
        return self.population.actors * self.population.commits * self.population.events


@dataclass(slots=True)
class Rivals:
    """What ours is compared with in one bench of replays; collects the sides and then builds the lines."""

    bench: str
    scale: Scale
    sides: dict[str, Measure]
    targets: dict[str, float | None] = field(default_factory=dict[str, float | None])
    missing: list[Line] = field(default_factory=list[Line])

    def add(self, label: str, target: float | None, measure: Measure) -> None:
        """Compare with one more side."""
        self.sides[label] = measure
        self.targets[label] = target

    def miss(self, label: str, target: float | None, error: PeerMissing) -> None:
        """Note that a side is not there."""
        self.missing.append(build_missing_line(Comparison(self.bench, "events/s", label, target), str(error)))

    async def add_peer(self, stack: AsyncExitStack, name: PeerName, target: float | None, population: Population) -> None:
        """Compare with a peer that holds an equal history, and warm it up."""
        try:
            self.scale.check_peers()
            print(f"filling and warming up: {LABELS[name]}", file=sys.stderr)
            peer = await stack.enter_async_context(start_peer(name))
        except PeerMissing as exc:
            return self.miss(LABELS[name], target, exc)
        await peer.fill("a", actors=population.actors, commits=population.commits, events=population.events)
        measure = partial(_measure_peer, peer, population)
        for _ in range(WARM_UP):
            await measure()
        self.add(LABELS[name], target, measure)

    def build_lines(self, samples: Mapping[str, Sequence[Sample]]) -> list[Line]:
        """Return the line of each comparison."""
        return [build_line(Comparison(self.bench, "events/s", label, target), samples["ours"], samples[label]) for label, target in self.targets.items()] + self.missing


async def run_replay_one(scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare the replay of one long history with the Go client's ordered consumer, with peers, and with ten events a commit."""
    commits = scale.of(EVENTS)
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer.start())
        single = await _populate(server, scale, "single", actors=1, commits=commits)
        batch = await _populate(server, scale, "batch", actors=1, commits=commits, events=BATCH_EVENTS)
        rivals = Rivals("replay-one", scale, {"ours": partial(_measure_ours, single), "batch": partial(_measure_ours, batch)})
        try:
            scale.check_peers()
            program = await find_go_reader()
            rivals.add("Go ordered consumer", GO_SHARE, partial(_measure_go, program, single, decode=False))
            rivals.add("Go ordered consumer that decodes and applies", None, partial(_measure_go, program, single, decode=True))
        except PeerMissing as exc:
            rivals.miss("Go ordered consumer", GO_SHARE, exc)
        for peer, target in REPLAY_PEERS:
            await rivals.add_peer(stack, peer, target, single.population)
        samples = await interleave(scale.rounds, rivals.sides)
    for line in rivals.build_lines(samples):
        yield line
    yield build_line(Comparison("replay-one", "events/s", f"one event a commit ({BATCH_EVENTS} here)", BATCH_FACTOR), samples["batch"], samples["ours"])


async def run_cold_start(scale: Scale) -> AsyncGenerator[Line, None]:
    """Compare the start of many interleaved actors with the bare known-sequence loop and with peers, and watch a writer beside it."""
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(EmbeddedServer.start())
        history = await _populate(server, scale, "cold", actors=scale.of(COLD_ACTORS), commits=COLD_EVENTS)
        rivals = Rivals("cold-start", scale, {"ours": partial(_measure_ours, history)})
        rivals.add("bare known-sequence loop", COLD_SHARE, partial(_measure_bare, history))
        for peer, target in COLD_PEERS:
            await rivals.add_peer(stack, peer, target, history.population)
        samples = await interleave(scale.rounds, rivals.sides)
        for line in rivals.build_lines(samples):
            yield line
        beside, alone = await _measure_writer(history, scale)
        yield build_line(Comparison("cold-start", "appends/s", "the same writer alone", WRITER_SHARE), beside, alone)


async def run_replay_million(scale: Scale) -> AsyncGenerator[Line, None]:
    """Measure how much memory the replay of a very long history takes."""
    async with EmbeddedServer.start() as server:
        history = await _populate(server, scale, "million", actors=1, commits=scale.of(MILLION))
        samples = await interleave(1, {"ours": partial(_measure_growth, history)}, warm_up=False)
        yield build_limit_line(Comparison("replay-million", "MB", "memory budget", 1.0, at_most=True), samples["ours"], MEMORY_MB)


async def run_idle_vm(scale: Scale) -> AsyncGenerator[Line, None]:
    """Start very many VMs and measure what each takes beyond its state."""
    async with EmbeddedServer.start() as server:
        history = await _populate(server, scale, "idle", actors=scale.of(IDLE_VMS), commits=1)
        samples = await interleave(1, {"ours": partial(_measure_footprint, history)}, warm_up=False)
        yield build_limit_line(Comparison("idle-vm", "bytes", f"budget of a VM, {history.population.actors} in one process", 1.0, at_most=True), samples["ours"], IDLE_BYTES)


async def _populate(server: EmbeddedServer, scale: Scale, namespace: str, *, actors: int, commits: int, events: int = 1) -> History:
    population = Population(server.port, namespace, PARTITIONS_DEFAULT, actors, commits, events)
    await make_streams(server, namespace, StreamPlan(broadcast=False))
    await run_python("-m", "bench.populate", msgspec.json.encode(population).decode(), timeout_s=REPLAY_TIMEOUT_S)
    return History(server, population, "" if scale.profile is None else str(profile_path(scale.profile, f"replay-{namespace}")))


async def _measure_ours(history: History) -> Sample:
    result = await _replay(history)
    return Sample(history.events / result.seconds)


async def _measure_growth(history: History) -> Sample:
    result = await _replay(history)
    return Sample(result.peak_mb - result.before_mb)


async def _measure_footprint(history: History) -> Sample:
    result = await _replay(history)
    return Sample((result.after_mb - result.before_mb) * 2**20 / history.population.actors - result.state_bytes)


async def _replay(history: History) -> ReplayResult:
    await _drop_snapshots(history)
    async with _start_replayer(history) as process:
        return msgspec.json.decode(await ask(process, timeout_s=REPLAY_TIMEOUT_S), type=ReplayResult)


@asynccontextmanager
async def _start_replayer(history: History) -> AsyncGenerator[asyncio.subprocess.Process, None]:
    """Start a runtime that waits for the word to replay, and kill it afterwards, so that it leaves no snapshots."""
    population = history.population
    replays = Replays(history.server.url, population.namespace, str(MANIFESTS), population.actors, population.commits * population.events, COLD_AT_ONCE, history.profile)
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


async def _measure_peer(peer: Peer, population: Population) -> Sample:
    events = population.commits * population.events
    return Sample(population.actors * events / await peer.replay("a", actors=population.actors, at_once=COLD_AT_ONCE, balance=5 * events))


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
