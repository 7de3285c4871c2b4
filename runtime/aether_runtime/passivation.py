"""Puts actors to sleep, and makes room for those that wake up.

What sleeps has no VM and no subscription; the actor stays desired (or, without a resource, is forgotten) and its next command,
which now finds no responder on `cmd` and comes by `call`, activates it again. No command is lost on the way: the subscription is
drained while the VM still serves, and between the last look at whether anybody has come and the VM's end nothing waits.

Reasons: no command for too long; more actors awake than the limit; memory pressure; and for an actor without a resource,
that it belongs to another pod since pods came or went.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Literal

from aether_api import logs
from aether_api.identity import ActorId, PodUid
from aether_runtime.core.passivation import SHED_GRACE_S, AwakeQueues, MemoryUse, MemoryValve, is_idle
from aether_runtime.memory import give_back_memory, read_memory
from aether_runtime.ports import ActorReport, DesiredActor
from aether_runtime.presence import choose_pod
from aether_runtime.vm import VirtualMachine

if TYPE_CHECKING:
    from aether_runtime.runtime import Runtime

logger = logging.getLogger(__name__)

AT_ONCE: Final = 64
"""Actors put to sleep at once: each costs a round trip, some a snapshot."""

HEADROOM_SHARE: Final = 20
"""One in so many places is kept free, up to `AT_ONCE`, so that an activation seldom waits for another actor to go."""

ROOM_WAIT_S: Final = 1.0
"""Seconds that an activation waits for room while every other actor is at work; then the limit gives way, since callers wait."""

LOOK_AGAIN_S: Final = 0.05
"""Seconds between looks for somebody to put to sleep while all are at work: a few groups of commands."""

IDLE_CHECKS: Final = 8
"""Looks at each actor in the time after which it is idle, so that it sleeps at most an eighth later."""

IDLE_CHECK_MIN_S: Final = 0.1
IDLE_CHECK_MAX_S: Final = 30.0
"""Seconds between looks for idle actors: a look costs some 0.3 us an actor, so it is next to nothing either way."""

LOOKED_AT_ONCE: Final = 1_000
"""Actors looked at without letting others run: 0.3 ms."""

MEMORY_POLL_S: Final = 5.0
"""Seconds between looks at the memory (Orleans has the same)."""

TELL_AGAIN_S: Final = 60.0
"""Seconds between two warnings of memory that is nearly full."""

SETTLE_S: Final = 2.0
"""Seconds without a pod coming or going after which actors without a resource follow: a pod that only missed heartbeats is back by then."""

MEMBERS_POLL_S: Final = 0.5
"""Seconds between looks at which pods live."""

Why = Literal["idle", "limit", "memory", "moved"]

MESSAGES: Final[dict[Why, str]] = {
    "idle": "asleep, since it had no command for its idle time; the next one wakes it",
    "limit": "asleep, since its pod keeps no more actors awake; its next command wakes it",
    "memory": "asleep, since its pod's memory is nearly full; its next command wakes it",
    "moved": "asleep, since it belongs to another pod now",
}


@dataclass(frozen=True, slots=True)
class SleepConfig:
    """How much stays awake.

    Attributes:
        awake_max: actors awake at once.
        on_demand_idle_s: seconds without a command after which an actor without a resource is forgotten, 0 for never.
        read_memory: tells use and limit; None where there is no limit.
    """

    awake_max: int = 10_000
    on_demand_idle_s: float = 600.0
    read_memory: Callable[[], MemoryUse | None] = read_memory


class Passivation:
    """The sleep of one runtime's actors.

    Attributes:
        counts: actors put to sleep, by reason.
        over_limit: activations that found no room and went on.
    """

    def __init__(self, config: SleepConfig, runtime: Runtime) -> None:
        self.counts: Counter[Why] = Counter()
        self.over_limit = 0
        self._config = config
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._queues = AwakeQueues(config.awake_max)
        self._valve = MemoryValve()
        self._told_of_memory_s = -TELL_AGAIN_S
        self._asleep: dict[ActorId, ActorReport] = {}
        self._pressed = asyncio.Event()
        self._idle_changed = asyncio.Event()
        self._shortest_idle_s = config.on_demand_idle_s or float("inf")
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._placed = 0
        self._room = config.awake_max - min(AT_ONCE, config.awake_max // HEADROOM_SHARE)

    @property
    def asleep(self) -> int:
        """How many actors with a resource sleep here."""
        return len(self._asleep)

    # What the runtime says and asks.

    def on_awake(self, vm: VirtualMachine) -> None:
        """A VM was made."""
        self._asleep.pop(vm.get_actor_id(), None)
        self._queues.admit(vm.get_actor_id())
        self.note_idle_time(vm.desired)

    def note_idle_time(self, desired: DesiredActor) -> None:
        """An actor that is awake may sleep sooner than all others."""
        idle_s = self._idle_after_s(desired)
        if 0 < idle_s < self._shortest_idle_s:
            self._shortest_idle_s = idle_s
            self._idle_changed.set()

    def on_gone(self) -> None:
        """A VM ended, for whatever reason."""
        self._queues.note_gone(self._runtime.registry.get)

    def keeps_asleep(self, desired: DesiredActor) -> bool:
        """Tell whether the actor sleeps here under this placement; what else changed of it is reported."""
        report = self._asleep.get(desired.actor)
        if report is None or report.desired.epoch != desired.epoch:
            self._asleep.pop(desired.actor, None)
            return False
        if report.desired != desired:
            self._asleep[desired.actor] = replace(report, desired=desired)
            self._runtime.on_report(self._asleep[desired.actor])
        return True

    def find(self, actor: ActorId) -> DesiredActor | None:
        """Return what is desired of an actor that sleeps here."""
        report = self._asleep.get(actor)
        return None if report is None else report.desired

    def find_report(self, actor: ActorId) -> ActorReport | None:
        """Return the last word of an actor that sleeps here."""
        return self._asleep.get(actor)

    def forget(self, actor: ActorId) -> None:
        """Let an actor that sleeps start when it is looked at next, or not at all if it is not desired any more."""
        self._asleep.pop(actor, None)

    async def make_room(self, vm: VirtualMachine) -> None:
        """Give a VM that is about to start its place; wait for one, but not for long."""
        if self._placed < self._config.awake_max:
            self._placed += 1
        else:
            await self._wait_for_place()
        vm.has_place = True
        if self._placed > self._room:
            self._pressed.set()

    async def _wait_for_place(self) -> None:
        """Wait for a place that is handed over, and take one more than there are where that takes too long."""
        self._pressed.set()
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        try:
            async with asyncio.timeout(ROOM_WAIT_S):
                await waiter
        except TimeoutError:
            if waiter.cancelled():  # else a place came in that moment
                self.over_limit += 1
                self._placed += 1
        except asyncio.CancelledError:
            if not waiter.cancelled():
                self._hand_place_on()
            raise
        finally:
            with suppress(ValueError):  # whoever was given a place is not in the queue any more
                self._waiting.remove(waiter)

    def give_back_place(self, vm: VirtualMachine) -> None:
        """A VM is over, or quarantined: nobody can put it to sleep then, and as a rule it holds no state, since it never came to have one."""
        if vm.has_place:
            vm.has_place = False
            self._hand_place_on()

    def _hand_place_on(self) -> None:
        self._placed -= 1
        while self._waiting and self._placed < self._config.awake_max:
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._placed += 1
                waiter.set_result(None)

    # Life.

    async def run(self) -> None:
        """Put actors to sleep until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._hold_limit(), name="limit of awake actors")
            tasks.create_task(self._watch_idle(), name="idle actors")
            tasks.create_task(self._watch_memory(), name="memory pressure")
            tasks.create_task(self._watch_members(), name="actors that belong elsewhere")

    async def _hold_limit(self) -> None:
        while True:
            await self._pressed.wait()
            self._pressed.clear()
            while (excess := self._placed + len(self._waiting) - self._room) > 0:
                if not await self._put_chosen_to_sleep(min(excess, AT_ONCE), "limit"):
                    await asyncio.sleep(LOOK_AGAIN_S)

    async def _watch_idle(self) -> None:
        while True:
            try:
                async with asyncio.timeout(min(IDLE_CHECK_MAX_S, max(IDLE_CHECK_MIN_S, self._shortest_idle_s / IDLE_CHECKS))):
                    await self._idle_changed.wait()
            except TimeoutError:
                await self._look_for_idle()
            else:
                self._idle_changed.clear()

    async def _look_for_idle(self) -> None:
        shortest_s = self._shortest_idle_s = float("inf")  # whoever wakes up meanwhile says so himself
        for vms in self._all_in_parts():
            now_s = self._loop.time()
            idle: list[ActorId] = []
            hopeless: list[ActorId] = []
            for vm in vms:
                idle_s = self._idle_after_s(vm.desired)
                shortest_s = min(shortest_s, idle_s or shortest_s)
                if is_idle(vm, idle_s, now_s):
                    idle.append(vm.get_actor_id())
                elif vm.is_quarantined and not vm.desired.name and 0 < idle_s <= now_s - vm.touched_s:
                    hopeless.append(vm.get_actor_id())
            await self._put_to_sleep(idle, "idle")
            for actor in hopeless:
                await self._let_go(actor)
            await asyncio.sleep(0)
        self._shortest_idle_s = min(shortest_s, self._shortest_idle_s)

    async def _watch_memory(self) -> None:
        while True:
            await asyncio.sleep(MEMORY_POLL_S)
            memory = self._config.read_memory()
            if memory is not None and await self.shed(memory):
                give_back_memory()

    async def shed(self, memory: MemoryUse) -> int:
        """Put as many actors to sleep as the memory asks for; returns how many."""
        count, slept = self._valve.count_to_shed(memory, len(self._runtime.registry.vms)), 0
        while count > slept:
            more = await self._put_chosen_to_sleep(min(count - slept, AT_ONCE), "memory", quiet_s=SHED_GRACE_S)
            if not more:
                break
            slept += more
        if count:
            self._tell_of_memory(memory, slept)
        return slept

    def _tell_of_memory(self, memory: MemoryUse, slept: int) -> None:
        """Say what memory pressure does, seldom: where it lasts, more sleep does not help, and somebody must act."""
        if self._loop.time() < self._told_of_memory_s + TELL_AGAIN_S:
            return
        self._told_of_memory_s = self._loop.time()
        text = (
            f"{memory.used >> 20} of {memory.limit >> 20} MB are in use: actors are put to sleep; if this goes on, raise the memory limit of the pod or lower AETHER_ACTORS_PER_POD"
        )
        logger.warning("memory is nearly full", extra={logs.REASON: text, logs.COUNT: slept})

    async def _watch_members(self) -> None:
        pods = self._runtime.presence.pods
        followed: list[PodUid] = []
        while True:
            await asyncio.sleep(MEMBERS_POLL_S)
            live = pods.live()
            if live != followed and pods.settled_s >= SETTLE_S:
                followed = live
                await self._hand_over(live)

    async def _hand_over(self, live: Sequence[PodUid]) -> None:
        """Let go of the actors without a resource that belong to other pods now; one in use finishes what it has in hand."""
        own = self._runtime.config.pod.uid
        for vms in self._all_in_parts():
            theirs = [vm.get_actor_id() for vm in vms if not vm.desired.name and choose_pod(vm.get_actor_id(), live) not in (own, None)]
            await self._put_to_sleep(theirs, "moved")
            for actor in theirs:
                if actor in self._runtime.registry.vms and await self._let_go(actor):
                    self.counts["moved"] += 1
            await asyncio.sleep(0)

    async def _let_go(self, actor: ActorId) -> bool:
        try:
            await self._runtime.stop_vm(actor)
        except Exception:  # as in `_try_to_put_to_sleep`
            logger.exception("an actor could not be stopped in order", extra={logs.ACTOR_ID: str(actor)})
            return False
        return True

    async def _put_chosen_to_sleep(self, count: int, why: Why, *, quiet_s: float = 0.0) -> int:
        """Let the queues choose; who is found at work after all stays a candidate."""
        registry = self._runtime.registry
        chosen = self._queues.choose(count, registry.get, self._loop.time(), quiet_s=quiet_s)
        slept = await self._put_to_sleep(chosen, why)
        for actor in chosen:
            if actor in registry.vms:
                self._queues.admit(actor)
        return slept

    async def _put_to_sleep(self, actors: Sequence[ActorId], why: Why) -> int:
        """Put those to sleep that can; the others stay candidates. Returns how many sleep."""
        slept = 0
        for start in range(0, len(actors), AT_ONCE):
            batch = actors[start : start + AT_ONCE]
            async with asyncio.TaskGroup() as tasks:
                tries = [tasks.create_task(self._try_to_put_to_sleep(actor, why), name=f"passivate {actor}") for actor in batch]
            slept += sum(task.result() for task in tries)
        self.counts[why] += slept
        return slept

    async def _try_to_put_to_sleep(self, actor: ActorId, why: Why) -> bool:
        try:
            return await self._put_one_to_sleep(actor, why)
        except Exception:  # this supervises many actors: what one of them meets must not keep the others awake, nor end the process
            logger.exception("an actor could not be put to sleep", extra={logs.ACTOR_ID: str(actor)})
            vm = self._runtime.registry.get(actor)
            if vm is not None:
                self._runtime.resume(vm)
            return False

    async def _put_one_to_sleep(self, actor: ActorId, why: Why) -> bool:
        runtime = self._runtime
        vm = runtime.registry.get(actor)
        if vm is None or not vm.can_sleep or not runtime.is_connected:
            return False
        touched_s = vm.touched_s
        await runtime.feeds.drain(runtime.feeds.take(actor))
        if vm.touched_s == touched_s:
            await vm.prepare_sleep()
        desired = runtime.registry.desired.get(actor)
        if desired is None or runtime.registry.get(actor) is not vm or not vm.can_sleep or vm.touched_s != touched_s:
            runtime.resume(vm)
            return False
        vm.fall_asleep(MESSAGES[why])  # from here to the end nothing waits, so nobody can have come
        if desired.name:
            self._asleep[actor] = vm.build_report()
        else:
            runtime.forget(actor)
        runtime.drop(vm)  # with the subscription that another try to put it to sleep may have taken up again meanwhile
        return True

    def _all_in_parts(self) -> Iterator[list[VirtualMachine]]:
        vms = list(self._runtime.registry.vms.values())
        for start in range(0, len(vms), LOOKED_AT_ONCE):
            yield vms[start : start + LOOKED_AT_ONCE]

    def _idle_after_s(self, desired: DesiredActor) -> float:
        return desired.idle_after_s if desired.name else self._config.on_demand_idle_s
