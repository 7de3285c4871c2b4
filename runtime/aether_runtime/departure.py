"""How a runtime leaves: it lets its actors be taken, answers what it was given, stops the VMs that are left, and is gone in time.

An operator takes actors from a pod that leaves a few at a time, and each is served until its turn comes: stopped all at once, the last of
500 waited for four seconds (measured in a rolling update on kind: p99 4.1 s, 2.1 when each waits for its own hand-over only).

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


HAND_OVER_SHARE: Final = 0.5
"""Share of the time for which actors are served on, so that the operator may take them; 10,000 of a pod take it most of a minute."""

HAND_OVER_PATIENCE_S: Final = 3.0
"""Seconds without one of them being taken after which nobody will: several plans of an operator with 10,000 actors."""

HAND_OVER_POLL_S: Final = 0.05
"""Seconds between counts of what is left: a thousandth of a core for 1,000 actors."""


async def wait_handed_over(count_left: Callable[[], int], *, within_s: float) -> None:
    """Wait while somebody takes what is left, until nothing is, nobody has for a while, or `within_s` have passed."""
    now_s = asyncio.get_running_loop().time
    ends_s, taken_s, left = now_s() + within_s, now_s(), count_left()
    while left and now_s() < min(ends_s, taken_s + HAND_OVER_PATIENCE_S):
        await asyncio.sleep(HAND_OVER_POLL_S)
        before, left = left, count_left()
        taken_s = now_s() if left < before else taken_s


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

    async def run(self, calls: Sequence[Subscription], list_vms: Callable[[], Sequence[VirtualMachine]], *, has_operator: bool = False) -> None:
        """Let an operator take what it placed here, take the calls that are on their way, and no more; then stop every VM that is left, many at once."""
        waiting: Iterator[VirtualMachine] | None = None
        try:
            async with asyncio.timeout_at(self._began_s + self._within_s):
                if has_operator:
                    await self._be_relieved(list_vms)
                await self._drain(calls)
                waiting = iter(list_vms())
                await self._stop_all(waiting)
        except TimeoutError:
            for vm in list_vms() if waiting is None else waiting:
                self._cut_short(vm)
        counts = {logs.COUNT: self.stopped, logs.DURATION_S: round(self._now_s() - self._began_s, 3), logs.REASON: f"{self.bare} without a snapshot, {self.cut} cut short"}
        logger.log(logging.WARNING if self.cut or self.bare else logging.INFO, "all actors are let go", extra=counts)

    async def _drain(self, calls: Sequence[Subscription]) -> None:
        for subscription in calls:
            try:
                await subscription.drain(DRAIN_TIMEOUT_S)
            except RetryableError as exc:
                logger.debug("a subscription could not be drained; its callers ask again", extra={logs.NAME: subscription.subject, logs.REASON: str(exc)})

    async def _be_relieved(self, list_vms: Callable[[], Sequence[VirtualMachine]]) -> None:
        """Wait until the operator has taken its actors; the others begin anew elsewhere with their next command, so they go at once."""
        await self._stop_all(iter([vm for vm in list_vms() if not vm.desired.name]))
        await wait_handed_over(lambda: sum(bool(vm.desired.name) for vm in list_vms()), within_s=HAND_OVER_SHARE * self._within_s)

    async def _stop_all(self, waiting: Iterator[VirtualMachine]) -> None:
        async with asyncio.TaskGroup() as stops:
            for number in range(STOPS_AT_ONCE):
                stops.create_task(self._stop_next(waiting), name=f"leave {number}")

    async def _stop_next(self, waiting: Iterator[VirtualMachine]) -> None:
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
