"""Lets the VMs of a process work stage by stage, each stage for all of them, once in an iteration of the loop.

A read of the socket brings commands and acks of many actors. Taken one by one, each runs through all of the code (parse,
decide, encode, send) and finds little of it in the processor's caches; taken in stages, most of it is there (measured: a third
of a command's time). And what arrived together for one actor becomes one group.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from aether_api.envelope import Commit
from aether_runtime.backlog import BACKLOG_BYTES_MAX
from aether_runtime.core.group import Group

if TYPE_CHECKING:
    from aether_runtime.vm import VirtualMachine


STORING_BYTES_MAX: Final = BACKLOG_BYTES_MAX // 8
"""Bytes of commits that are decided and not acknowledged, from which on other VMs wait with theirs. What the backlog admits are small commands, and each may make large events: one command
each of 1,000 actors that makes 200 KB took 780 MB, with this bound 130, and less time (measured)."""

PATIENCE_S: Final = 1.0
"""Seconds without the end of an append after which as many bytes again may be under way: what one stream does not take must not hold up the actors of others."""


class _Stored(NamedTuple):
    """A group that the log has taken."""

    vm: VirtualMachine
    commit: Commit
    group: Group
    sequence: int


class Turn:
    """What the VMs of one process do when the loop comes round.

    Appends and answers of a stage leave at its end, by one write: the server works on them while the next stage runs (measured: a twentieth
    more commands than with a write when the loop comes round again, which first reads what has come meanwhile).
    """

    def __init__(self, write: Callable[[], None] = lambda: None) -> None:
        """Make a turn in which nobody waits.

        Args:
            write: hands what is queued to the socket.
        """
        self._write = write
        self._idle: list[VirtualMachine] = []
        self._parked: list[VirtualMachine] = []
        self._storing, self._storing_max = 0, STORING_BYTES_MAX
        self._ended = 0
        self._patience: asyncio.TimerHandle | None = None
        self._stored: list[_Stored] = []

    def decide(self, vm: VirtualMachine) -> None:
        """Have a VM decide what waits for it, if nothing else is under way by then; harmless to repeat."""
        if not self._idle:
            asyncio.get_running_loop().call_soon(self._decide_all)
        self._idle.append(vm)

    def begin_append(self, size: int) -> None:
        """Count an append of so many bytes, until its end is told."""
        self._storing += size

    def end_append(self, size: int) -> None:
        """Count it no more, whatever became of it."""
        self._storing -= size
        self._ended += 1
        if self._storing < STORING_BYTES_MAX:
            self._storing_max = STORING_BYTES_MAX
        if self._parked:
            self._unpark()

    def accept(self, vm: VirtualMachine, commit: Commit, group: Group, sequence: int) -> None:
        """Have a VM move on to its commit, which is stored at `sequence`, answer, and go on."""
        if not self._stored:
            asyncio.get_running_loop().call_soon(self._accept_all)
        self._stored.append(_Stored(vm, commit, group, sequence))

    def _decide_all(self) -> None:
        vms, self._idle = self._idle, []
        decided: list[tuple[VirtualMachine, Group]] = []
        room = self._storing_max - self._storing
        for place, vm in enumerate(vms):
            if room <= 0:
                self._park(vms[place:])
                break
            group = vm.decide()
            if group is not None:
                decided.append((vm, group))
                room -= group.bytes
        for vm, group in decided:
            vm.store(group)
        self._write()
        if self._parked:
            self._unpark()

    def _park(self, vms: Sequence[VirtualMachine]) -> None:
        """Let VMs wait until appends that are under way have ended."""
        self._parked += vms
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(PATIENCE_S, self._lose_patience, self._ended)

    def _unpark(self) -> None:
        """Let those go on that wait, if there is room; whoever waits on waits for an append that is under way."""
        if self._storing < self._storing_max:
            parked, self._parked = self._parked, []
            if not self._idle:
                asyncio.get_running_loop().call_soon(self._decide_all)
            self._idle[:0] = parked

    def _lose_patience(self, ended: int) -> None:
        self._patience = None
        if self._parked and self._ended == ended:
            self._storing_max = self._storing + STORING_BYTES_MAX
            self._unpark()
        elif self._parked:
            self._park(())

    def _accept_all(self) -> None:
        stored, self._stored = self._stored, []
        accepted = [item for item in stored if item.vm.accept(item.commit, item.group, item.sequence)]
        for vm, _, group, _ in accepted:
            vm.answer(group)
        self._write()
        for vm, _, _, _ in accepted:
            vm.go_on()
        if self._idle:
            self._decide_all()
