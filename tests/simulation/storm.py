"""The course of trouble: a storm whose kinds and moments come from the seed, then calm, in which everything must come to rest."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from aether_api.identity import PodUid
from aether_nats.connection import NatsConnection
from tests.histories.alarm import Alarm
from tests.histories.bank import compile_account
from tests.simulation.clients import purge
from tests.simulation.faults import CLOCKS_S
from tests.simulation.loop import Process, State, context_of
from tests.simulation.network import Link

if TYPE_CHECKING:
    from tests.simulation.world import Pod, World

KILLED_FOR_S: Final = (0.2, 4.0)
PAUSED_FOR_S: Final = (0.05, 8.0)
DOWN_FOR_S: Final = (0.1, 3.0)
ELECTION_S: Final = (0.1, 4.0)
PARTITION_S: Final = (0.5, 8.0)
SLOW_FOR_S: Final = (0.5, 6.0)
SLOW_MAX_S: Final = (0.05, 1.5)
"""Seconds that each trouble lasts, and how slow a slow link is."""

SAME_POD_SHARE: Final = 0.5
"""Share of killed pods whose process starts again under the same UID, as the kubelet does."""


class RewordedAlarm(Alarm):
    """The alarm with another content, whose snapshots all versions share."""

    content_hash = "alarm-2"


class RefoldedAlarm(Alarm):
    """The alarm with another fold, which comes to the same states."""

    content_hash = "alarm-3"
    fold = "f-alarm-3"


MODELS: Final = (
    *(Alarm(), RewordedAlarm(), RefoldedAlarm()),
    *(compile_account(), replace(compile_account(), content_hash="account-2"), replace(compile_account(), content_hash="account-3", fold="f-account-3")),
)
"""Versions of the models, all of which come to the same states."""

_T = TypeVar("_T")


class Storm:
    """Makes trouble for a while."""

    def __init__(self, world: World, source: random.Random) -> None:
        self._world = world
        self._random = source
        self._clients = 2

    async def run(self) -> None:
        """Rage, then calm down and heal everything."""
        climate = self._world.faults.climate
        end_s = self._world.loop.time() + climate.storm_s
        kinds, rates = list(climate.events), list(climate.events.values())
        while (now_s := self._world.loop.time()) < end_s:
            await asyncio.sleep(min(self._random.expovariate(sum(rates)) if any(rates) else climate.storm_s, end_s - now_s))
            if self._world.loop.time() < end_s:
                self._strike(self._random.choices(kinds, rates)[0])
        self._heal()

    def _strike(self, kind: str) -> None:
        act: Callable[[], None] = getattr(self, f"_{kind}")
        self._world.count(kind)
        act()

    def _heal(self) -> None:
        world = self._world
        world.log("calm")
        world.faults.calm()
        world.network.is_up = True
        world.network.partitioned.clear()
        for process in world.processes:
            world.resume(process)
        for link in list(world.network.links):
            if link.is_silent:
                link.reset()
        for stream in world.engine.streams.values():
            stream.leaderless_s = 0.0

    # Each kind of trouble.

    def _reset(self) -> None:
        link = self._choose(self._find_links())
        if link is not None:
            deliver = self._random.random() < 0.5
            self._world.log(f"the link of {link.process.name} is reset{', after what it sent arrived' if deliver else ''}")
            link.reset(deliver=deliver)

    def _silence(self) -> None:
        link = self._choose(self._find_links())
        if link is not None:
            self._world.log(f"the link of {link.process.name} goes silent")
            link.go_silent()

    def _slow(self) -> None:
        process = self._choose(self._world.living())
        if process is not None:
            slow = self._world.faults.slow
            slow[process.name] = self._random.uniform(*SLOW_MAX_S)
            self._world.log(f"{process.name} has a slow link")
            self._later(SLOW_FOR_S, partial(slow.pop, process.name, None))

    def _partition(self) -> None:
        process = self._choose(self._world.living())
        if process is not None:
            self._world.log(f"{process.name} reaches nobody")
            self._world.network.partitioned.add(process.name)
            for link in self._world.network.links_of(process):
                link.go_silent()
            self._later(PARTITION_S, partial(self._world.network.partitioned.discard, process.name))

    def _pause(self) -> None:
        process = self._choose([process for process in self._world.living() if process.state is State.RUNNING])
        if process is not None:
            for_s = self._random.uniform(*PAUSED_FOR_S)
            self._world.log(f"{process.name} stands still for {for_s:.3f} s")
            self._world.pause(process, for_s)

    def _kill(self) -> None:
        pod = self._choose([pod for pod in self._world.pods.values() if pod.process.state is not State.DEAD])
        if pod is not None:
            self._kill_process(pod.process)
            self._later(KILLED_FOR_S, partial(self._restart, pod))

    def _kill_client(self) -> None:
        process = self._choose([process for process in self._world.living() if process.name.startswith("client")])
        if process is not None:
            self._kill_process(process)
            self._clients += 1
            self._later(KILLED_FOR_S, partial(self._world.start_client, f"client{self._clients}"))

    def _kill_reader(self) -> None:
        process = self._choose([process for process in self._world.living() if process.name.startswith("reader")])
        if process is not None:
            self._kill_process(process)
            self._later(KILLED_FOR_S, self._world.start_reader)

    def _server(self) -> None:
        network = self._world.network
        if network.is_up:
            self._world.log("the server ends")
            network.stop()
            self._world.broker.close_all()
            self._later(DOWN_FOR_S, self._serve)

    def _election(self) -> None:
        stream = self._choose(list(self._world.engine.streams.values()))
        if stream is not None:
            for_s = self._random.uniform(*ELECTION_S)
            self._world.log(f"{stream.config.name} has no leader for {for_s:.3f} s")
            self._world.engine.elect(stream, self._world.broker.clock.now_s() + for_s)

    def _move(self) -> None:
        pods = [pod.uid for pod in self._world.pods.values() if pod.process.state is not State.DEAD]
        actor, pod = self._choose([actor for actor in self._world.placed if actor in self._world.registry.history]), self._choose(pods)
        if actor is not None and pod is not None:
            self._world.operator.move(actor, pod)

    def _purge(self) -> None:
        if self._world.mortal in self._world.registry.history:
            self._world.start_process("purger", self._end_mortal)

    def _model(self) -> None:
        """One pod, or all as in a rollout, takes another version of a model: with or without another fold, but of the same states."""
        pods = self._find_pods()
        for pod in pods if self._random.random() < 0.5 else pods[:1]:
            model = self._random.choice(MODELS)
            self._world.log(f"{pod.uid} loads {model.name} {model.content_hash}")
            self._tell(pod, partial(pod.runtime.load_model, model) if pod.runtime is not None else lambda: None)

    def _lose_model(self) -> None:
        """A pod hears that a model is gone, and a moment later that it is there again."""
        for pod in self._find_pods()[:1]:
            if pod.runtime is not None:
                model = self._random.choice(MODELS)
                self._world.log(f"{pod.uid} loses {model.name}")
                self._tell(pod, partial(pod.runtime.on_model_gone, model.name))
                self._later(KILLED_FOR_S, partial(self._tell, pod, partial(pod.runtime.load_model, model)))

    def _leave(self) -> None:
        """A pod is told to stop, and another one comes."""
        pods = self._find_pods()
        if len(pods) > 1 and pods[0].runtime is not None:
            self._world.log(f"{pods[0].uid} leaves")
            del self._world.pods[pods[0].uid]
            self._tell(pods[0], pods[0].runtime.request_stop)
            self._world.start_pod()

    def _clock(self) -> None:
        process = self._choose(self._world.living())
        if process is not None:
            process.skew_s = self._random.uniform(-CLOCKS_S, CLOCKS_S)
            self._world.log(f"the clock of {process.name} is wrong by {process.skew_s:.3f} s")

    async def _end_mortal(self, connection: NatsConnection) -> None:
        await purge(self._world, connection, self._world.mortal)

    # Means.

    def _kill_process(self, process: Process) -> None:
        silently = self._random.random() < 0.3
        self._world.log(f"{process.name} is killed{', with its machine' if silently else ''}")
        self._world.kill(process, silently=silently)

    def _restart(self, pod: Pod) -> None:
        if self._random.random() < SAME_POD_SHARE:
            self._world.start_pod(pod.uid)
        else:
            del self._world.pods[PodUid(pod.uid)]
            self._world.start_pod()

    def _find_links(self) -> list[Link]:
        return [link for link in self._world.network.links if link.is_open and not link.is_silent]

    def _find_pods(self) -> list[Pod]:
        """Return the pods that run, in any order."""
        pods = [pod for pod in self._world.pods.values() if pod.process.state is State.RUNNING and pod.runtime is not None]
        self._random.shuffle(pods)
        return pods

    def _tell(self, pod: Pod, what: Callable[[], object]) -> None:
        """Have a pod's process do something."""
        self._world.loop.call_soon(what, context=context_of(pod.process))

    def _serve(self) -> None:
        self._world.network.is_up = True

    def _later(self, span_s: tuple[float, float], work: Callable[[], object]) -> None:
        self._world.loop.call_later(self._random.uniform(*span_s), lambda: None if self._world.is_over else work())

    def _choose(self, options: Sequence[_T]) -> _T | None:
        return self._random.choice(options) if options else None
