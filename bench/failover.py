"""The bench of deaths: how long actors of a killed pod take no commands, how soon a standby acts, and who was moved for nothing.

A runtime process is killed as a node that loses power would kill it, and at once every actor that it held is sent a command, by a client
that tries as our client does, until it is accepted. Then the leader of two operators is killed, and an Actor applied in that moment.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Final

from aether_api.identity import parse_actor_id
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.settings import NatsSettings
from bench.account import DEPOSIT
from bench.apply_to_ready import Crowd, start_crowd
from bench.at_once import run_at_once
from bench.audit import Audit
from bench.errors import BenchFailed, PeerMissing
from bench.kube_stage import NAMESPACE, OPERATORS, WAIT_S, SeenActor
from bench.results import Comparison, Line, Sample, build_limit_line, build_line, build_missing_line, find_quantile
from bench.scale import Scale
from bench.stand_in import LocalPod

ACTORS: Final = 1_000
PODS: Final = 5
ROUNDS: Final = 3
"""Pods that are killed, one after the other; none comes back."""

COMMAND_TIMEOUT_S: Final = 60.0

LIMIT_S: Final = 3.0
"""Seconds from the death of a pod to the first command that an actor of it accepts, for 99 of 100 actors."""

LEADER_LIMIT_S: Final = 15.0
"""Seconds from the death of a leader to the first placement by the standby; the goal is 5."""

QUIET_S: Final = 3.0
"""Seconds after a fail-over in which moves that nobody needs would come."""

P99: Final = Comparison("failover", "s p99", "limit of 3 s", 1.0, at_most=True)
P50: Final = Comparison("failover", "s p50", "limit of 3 s, at the median")
LAST: Final = Comparison("failover", "s to the last actor", "limit of 3 s, for the last actor")
NEEDLESS: Final = Comparison("failover", "actors moved needlessly", "actors of killed pods", 0.0, at_most=True)
LEADER: Final = Comparison("failover", "s to the standby's first placement", "limit of 15 s", 1.0, at_most=True)
LEADER_NEEDLESS: Final = Comparison("failover", "actors moved for a killed leader", "all actors", 0.0, at_most=True)
ALL: Final = (P99, P50, LAST, NEEDLESS, LEADER, LEADER_NEEDLESS)


@dataclass(frozen=True, slots=True)
class _Loss:
    """What one killed pod cost.

    Attributes:
        pauses_s: of its actors, ascending.
        needless: actors of other pods that were moved.
    """

    pauses_s: list[float]
    needless: int


async def run_failover(scale: Scale) -> AsyncGenerator[Line, None]:
    """Kill pods, then the leader."""
    rounds = min(scale.rounds, ROUNDS)
    try:
        async with AsyncExitStack() as stack:
            crowd, leader = await start_crowd(stack, scale, scale.of(ACTORS, at_least=4 * PODS), pods=PODS, audit=True)
            nats = await NatsConnection.open(NatsSettings((crowd.stage.nats.url,), "bench"))
            stack.push_async_callback(nats.close)
            await crowd.fill()
            client = CommandClient(nats)
            await _send_to(client, sorted(crowd.watch.actors))
            losses = [await _lose_pod(crowd, client, crowd.pods.pods[number]) for number in range(rounds)]
            await stack.enter_async_context(crowd.stage.start_operator(OPERATORS[1]))
            takeover_s, needless = await _lose_leader(crowd, leader)
    except PeerMissing as exc:
        for comparison in ALL:
            yield build_missing_line(comparison, str(exc))
    else:
        for comparison, share in ((P99, 0.99), (P50, 0.5), (LAST, 1.0)):
            yield build_limit_line(comparison, [Sample(find_quantile(loss.pauses_s, share)) for loss in losses], LIMIT_S)
        yield build_line(NEEDLESS, [Sample(loss.needless) for loss in losses], [Sample(len(loss.pauses_s)) for loss in losses])
        yield build_limit_line(LEADER, [Sample(takeover_s)], LEADER_LIMIT_S)
        yield build_line(LEADER_NEEDLESS, [Sample(needless)], [Sample(crowd.begun)])


async def _lose_pod(crowd: Crowd, client: CommandClient, pod: LocalPod) -> _Loss:
    before = crowd.watch.actors
    lost = sorted(name for name, seen in before.items() if seen.pod_uid == pod.uid)
    if not lost:
        raise BenchFailed(f"pod {pod.name} holds no actors")
    pod.kill()
    pauses_s = await _send_to(client, lost)
    await crowd.watch.wait(lambda: all(_is_back(crowd.watch.get(name), pod) for name in lost), timeout_s=WAIT_S, what="not every status tells of the new pod")
    await asyncio.sleep(QUIET_S)
    return _Loss(sorted(pauses_s), count_moved(before, crowd.watch.actors, lost))


async def _lose_leader(crowd: Crowd, leader: asyncio.subprocess.Process) -> tuple[float, int]:
    """Kill the leader while another process waits, and return when that one placed an Actor, and how many it moved."""
    await Audit(crowd.stage.plane.audit_log).wait_for(lambda call: call.user == OPERATORS[1] and call.resource == "leases", timeout_s=WAIT_S)
    before, name = crowd.watch.actors, "after-the-leader"
    leader.send_signal(signal.SIGKILL)
    began_s = time.perf_counter()
    await crowd.stage.create_actors([name])
    await crowd.watch.wait(lambda: crowd.watch.get(name).pod != "", timeout_s=WAIT_S, what="the standby placed nothing")
    takeover_s = time.perf_counter() - began_s
    await asyncio.sleep(QUIET_S)
    return takeover_s, count_moved(before, crowd.watch.actors, ())


async def _send_to(client: CommandClient, names: Sequence[str]) -> list[float]:
    """Send each actor a command until it is accepted, and return the seconds that this took since now."""
    began_s = time.perf_counter()
    pauses_s: list[float] = []

    async def send(name: str) -> None:
        reply = await client.send(parse_actor_id(NAMESPACE, "account", name), "Deposit", DEPOSIT, timeout_s=COMMAND_TIMEOUT_S)
        if reply.outcome != "accepted":
            raise BenchFailed(f"actor {name} says {reply.outcome}: {reply.reason} {reply.message}")
        pauses_s.append(time.perf_counter() - began_s)

    await run_at_once([partial(send, name) for name in names], len(names))
    return pauses_s


def count_moved(before: dict[str, SeenActor], after: dict[str, SeenActor], but: Sequence[str]) -> int:
    """Return how many Actors are elsewhere, or in another epoch, beside those that had to move."""
    excepted = set(but)
    return sum(1 for name, seen in before.items() if name not in excepted and (after[name].pod_uid, after[name].epoch) != (seen.pod_uid, seen.epoch))


def _is_back(seen: SeenActor, pod: LocalPod) -> bool:
    return seen.ready and seen.pod_uid not in ("", pod.uid)
