"""Our side of the replay benches: a whole runtime, as `python -m aether_runtime` is one, that starts VMs and tells how long that took and what memory it needed.

A fresh process for each measurement, which is killed afterwards, so that no snapshot shortens the next one.

Usage: `python -m bench.replay_ours JSON`, with the fields of `Replays`; prints `ready`, begins at a line on its input and
prints a `ReplayResult` as JSON.
"""

from __future__ import annotations

import asyncio
import cProfile
import gc
import sys
import time
from collections import deque
from pathlib import Path
from typing import Final

import msgspec
import uvloop

from aether_api.identity import parse_actor_id
from aether_runtime.ports import DesiredActor
from aether_runtime.process import calm_collector, open_runtime
from aether_runtime.runtime import Runtime
from aether_runtime.settings import read_settings
from aether_runtime.vm import VirtualMachine
from bench.errors import BenchFailed
from bench.profiled import write_profile

POLL_S: Final = 0.002
"""Seconds between looks at whether all VMs are ready: a thousandth of what is measured."""

WAITING_MAX: Final = 1024
"""VMs that wait for a permit or replay: with more, what is measured is a crowd of waiting tasks."""

SPARE: Final = 1000
"""Actors that the process may hold beyond those of the bench, so that none is put to sleep."""

MODEL_TIMEOUT_S: Final = 30.0
"""Seconds until the manifests are read."""


class Replays(msgspec.Struct, frozen=True):
    """Which actors to start: `a<first>` and so on.

    Attributes:
        version: which every actor must have in the end.
        permits: replays at once.
        profile: file for a profile of the replay; empty for none.
    """

    url: str
    namespace: str
    folder: str
    actors: int
    version: int
    permits: int = 64
    profile: str = ""


class ReplayResult(msgspec.Struct, frozen=True):
    """How long it took, resident memory in MB before, at its highest and after, and the bytes of one actor's state."""

    seconds: float
    before_mb: float
    peak_mb: float
    after_mb: float
    state_bytes: int


async def main(text: str) -> None:
    """Start the runtime, wait for the signal, replay, report, and stay until killed."""
    replays = msgspec.json.decode(text, type=Replays)
    settings = read_settings(
        {}, folder=replays.folder, nats_url=replays.url, namespace=replays.namespace, http_port=0, recovery_permits=replays.permits, actors_per_pod=replays.actors + SPARE
    )
    async with open_runtime(settings) as runtime, asyncio.TaskGroup() as tasks:
        tasks.create_task(runtime.run(), name="runtime")
        await _await_model(runtime)
        calm_collector()
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        print(msgspec.json.encode(await _measure(runtime, replays)).decode(), flush=True)


async def _measure(runtime: Runtime, replays: Replays) -> ReplayResult:
    before_mb = _read_status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # noqa: ASYNC240  # it is no disk: forget the highest memory so far
    profile = cProfile.Profile()
    if replays.profile:
        profile.enable()
    began = time.perf_counter()
    await _replay(runtime, replays)
    seconds, peak_mb = time.perf_counter() - began, _read_status_mb("VmHWM")
    if replays.profile:
        profile.disable()
        write_profile(profile, Path(replays.profile))
    gc.collect()
    state = next(iter(runtime.get_active_vms().values())).get_state()
    return ReplayResult(seconds, before_mb, peak_mb, _read_status_mb("VmRSS"), sys.getsizeof(state) + sum(map(sys.getsizeof, state.values())))


async def _replay(runtime: Runtime, replays: Replays) -> None:
    """Start all VMs, so many at once that the permits are always in use."""
    actors = (parse_actor_id(replays.namespace, "account", f"a{number}") for number in range(replays.actors))
    waiting: deque[VirtualMachine] = deque()
    for actor in actors:
        waiting.append(runtime.create_vm(DesiredActor(actor)))
        if len(waiting) >= WAITING_MAX:
            await _drop_ready(waiting, replays, down_to=WAITING_MAX // 2)
    await _drop_ready(waiting, replays, down_to=0)


async def _drop_ready(waiting: deque[VirtualMachine], replays: Replays, *, down_to: int) -> None:
    while len(waiting) > down_to:
        await asyncio.sleep(POLL_S)
        while waiting and waiting[0].is_ready:
            vm = waiting.popleft()
            if vm.get_version() != replays.version:
                raise BenchFailed(f"{vm.get_actor_id()} has version {vm.get_version()} after its replay, not {replays.version}")


async def _await_model(runtime: Runtime) -> None:
    async with asyncio.timeout(MODEL_TIMEOUT_S):
        while runtime.find_model("account") is None:  # noqa: ASYNC110  # a source tells nobody but the runtime
            await asyncio.sleep(POLL_S)


def _read_status_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
