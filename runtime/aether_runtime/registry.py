"""Which VMs this process holds, and which it should."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from types import MappingProxyType

from aether_api.identity import ActorId, Epoch
from aether_runtime.ports import DesiredActor
from aether_runtime.vm import VirtualMachine


class VMRegistry:
    """VMs by actor, and the highest placement known for each actor.

    The epoch of a released actor is remembered for as long as the process lives (an integer each), so that a late
    message of an older placement is recognised; an actor without a resource has none.
    """

    def __init__(self) -> None:
        self._vms: dict[ActorId, VirtualMachine] = {}
        self._desired: dict[ActorId, DesiredActor] = {}
        self._epochs: dict[ActorId, Epoch] = {}
        self._released: dict[ActorId, Epoch] = {}
        self._let_go: dict[ActorId, asyncio.Future[None]] = {}

    @property
    def vms(self) -> Mapping[ActorId, VirtualMachine]:
        """All VMs, read only."""
        return MappingProxyType(self._vms)

    def count_backlog(self) -> int:
        """Return the bytes of all commands that wait here or are being stored; some 0.1 us for each VM and each command."""
        return sum(vm.backlog_bytes for vm in self._vms.values())

    @property
    def desired(self) -> Mapping[ActorId, DesiredActor]:
        """All actors that this process should hold, read only."""
        return MappingProxyType(self._desired)

    def get(self, actor: ActorId) -> VirtualMachine | None:
        """Return the actor's VM."""
        return self._vms.get(actor)

    def put(self, vm: VirtualMachine) -> None:
        """Note a VM; there is at most one for an actor."""
        self._vms[vm.get_actor_id()] = vm

    def remove(self, vm: VirtualMachine) -> None:
        """Forget a VM, unless another one took its place."""
        if self._vms.get(vm.get_actor_id()) is vm:
            del self._vms[vm.get_actor_id()]
            self._end_wait(vm.get_actor_id())

    def is_going(self, actor: ActorId) -> bool:
        """Tell whether the actor's VM is still here and should not be."""
        return actor in self._vms and actor not in self._desired

    def wait_let_go(self, actor: ActorId) -> asyncio.Future[None]:
        """Return what is done when an actor that is going has gone, or is wanted again; all who wait share it and none may cancel it."""
        waited = self._let_go.get(actor)
        if waited is None:
            waited = self._let_go[actor] = asyncio.get_running_loop().create_future()
        return waited

    def known_epoch(self, actor: ActorId) -> Epoch:
        """Return the highest epoch at which the actor was given to this process."""
        return self._epochs.get(actor, Epoch(0))

    def want(self, desired: DesiredActor) -> None:
        """Note that this process should hold the actor."""
        self._desired[desired.actor] = desired
        self._end_wait(desired.actor)
        if desired.name:
            self._released.pop(desired.actor, None)
        if desired.epoch:
            self._epochs[desired.actor] = max(desired.epoch, self.known_epoch(desired.actor))

    def unwant(self, actor: ActorId) -> None:
        """Note that this process should not hold the actor."""
        self._desired.pop(actor, None)

    def note_release(self, actor: ActorId, epoch: Epoch) -> None:
        """Note that the actor's placement at this epoch is over."""
        self._released[actor] = max(epoch, self._released.get(actor, epoch))

    def is_released(self, desired: DesiredActor) -> bool:
        """Tell whether a placement was over already when somebody who had looked it up brings it."""
        released = self._released.get(desired.actor)
        return released is not None and bool(desired.name) and desired.epoch <= released

    def _end_wait(self, actor: ActorId) -> None:
        waited = self._let_go.pop(actor, None)
        if waited is not None:
            waited.set_result(None)
