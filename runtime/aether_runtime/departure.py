"""How a runtime leaves: it answers what it was given, stops its VMs, and is gone in time.

All of it has one bound, since a pod that is still busy when its grace ends is killed in the middle. What costs time without keeping
anything safe goes first when time runs out: snapshots, then waiting for appends whose outcome stays unknown. Nothing that was
acknowledged depends on any of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Final, Protocol

from aether_api import logs
from aether_api.errors import RetryableError
from aether_nats.connection import Subscription
from aether_runtime.vm import VirtualMachine

logger = logging.getLogger(__name__)

STOPS_AT_ONCE: Final = 64
"""VMs stopped at once: each costs a round trip, most write a snapshot."""

DRAIN_TIMEOUT_S: Final = 1.0
"""Seconds for the calls that are on their way: one round trip."""

SNAPSHOT_RESERVE: Final = 0.25
"""Share of the time in which, at the end, no snapshot is begun: a VM stops a hundred times as fast without."""


class StopVm(Protocol):
    """Lets one VM go, and forgets it."""

    async def __call__(self, vm: VirtualMachine, *, snapshot: bool) -> None:
        """Stop it in order; when cancelled, forget it all the same."""
        ...


def has_time_for_snapshot(left_s: float, whole_s: float) -> bool:
    """Tell whether a VM that stops may still write a snapshot."""
    return left_s > SNAPSHOT_RESERVE * whole_s


class Departure:
    """One leave, from its beginning to its end.

    Attributes:
        stopped: VMs that finished what they had in hand; `bare` of them had no time for a snapshot.
        cut: VMs that did not finish; their callers learn that the outcome is unknown.
    """

    def __init__(self, stop_vm: StopVm, *, within_s: float, is_connected: Callable[[], bool]) -> None:
        self.stopped = self.bare = self.cut = 0
        self._stop_vm = stop_vm
        self._within_s = within_s
        self._is_connected = is_connected
        self._now_s = asyncio.get_running_loop().time
        self._began_s = self._now_s()

    async def run(self, calls: Sequence[Subscription], vms: Sequence[VirtualMachine]) -> None:
        """Take the calls that are on their way, and no more; then stop every VM, many at once."""
        waiting = iter(vms)
        try:
            async with asyncio.timeout_at(self._began_s + self._within_s):
                await self._drain(calls)
                async with asyncio.TaskGroup() as stops:
                    for number in range(STOPS_AT_ONCE):
                        stops.create_task(self._stop_all(waiting), name=f"leave {number}")
        except TimeoutError:
            for vm in waiting:
                self._cut_short(vm)
        counts = {logs.COUNT: self.stopped, logs.DURATION_S: round(self._now_s() - self._began_s, 3), logs.REASON: f"{self.bare} without a snapshot, {self.cut} cut short"}
        logger.log(logging.WARNING if self.cut or self.bare else logging.INFO, "all actors are let go", extra=counts)

    async def _drain(self, calls: Sequence[Subscription]) -> None:
        for subscription in calls:
            try:
                await subscription.drain(DRAIN_TIMEOUT_S)
            except RetryableError as exc:
                logger.debug("a subscription could not be drained; its callers ask again", extra={logs.NAME: subscription.subject, logs.REASON: str(exc)})

    async def _stop_all(self, waiting: Iterator[VirtualMachine]) -> None:
        for vm in waiting:
            await self._stop_one(vm)

    async def _stop_one(self, vm: VirtualMachine) -> None:
        left_s = self._began_s + self._within_s - self._now_s()
        snapshot = self._is_connected() and has_time_for_snapshot(left_s, self._within_s)
        try:
            await self._stop_vm(vm, snapshot=snapshot)
        except asyncio.CancelledError:
            self._cut_short(vm)
            raise
        except Exception:  # one VM must not keep the others from their end
            logger.exception("a VM could not be stopped in order", extra={logs.ACTOR_ID: str(vm.get_actor_id())})
            self._cut_short(vm)
        else:
            self.stopped += 1
            self.bare += not snapshot

    def _cut_short(self, vm: VirtualMachine) -> None:
        self.cut += 1
        vm.cut_short()
