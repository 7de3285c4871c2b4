"""Owners of actors on a real log: live VMs without a pod around them, several of which may hold the same actors at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aether_api.envelope import StoredCommit
from aether_api.identity import ActorId, parse_actor_id
from aether_api.messages import Command, Reply
from aether_nats.journal import Journal
from aether_runtime.core.group import Waiting
from aether_runtime.ports import CommitLog
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import build_command
from tests.histories.invariants import check_answers, check_log, events_of, read_history
from tests.histories.world import Pod

SHARED: Final = [parse_actor_id("default", "account", f"shared-{number}") for number in range(6)]
"""Actors that several owners write to."""


@dataclass
class Owner:
    """One who believes to own some actors; every final answer is kept."""

    pod: Pod
    journal: Journal
    vms: dict[ActorId, VirtualMachine] = field(default_factory=dict[ActorId, VirtualMachine])
    replies: dict[ActorId, list[Reply]] = field(default_factory=dict[ActorId, list[Reply]])

    @property
    def accepted(self) -> int:
        """How many commands were accepted."""
        return sum(reply.outcome == "accepted" for replies in self.replies.values() for reply in replies)

    async def deposit(self, actor: ActorId, numbers: Iterable[int]) -> None:
        """Deposit 1 for each number, one after the other, each repeated until its outcome is known."""
        for number in numbers:
            await self.run(build_command("Deposit", {"amount": 1}, id=f"{self.pod.name}-{number}", actor=actor))

    async def run(self, command: Command) -> None:
        """Repeat a command until it is answered for good."""
        while True:
            answered: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
            self.vms[command.actor].process_command(Waiting(command, self.pod.clock.elapsed_s + command.timeout_s, answered.set_result))
            reply = await answered
            if not reply.retry_after_ms:
                self.replies.setdefault(command.actor, []).append(reply)
                return
            assert (self.pod.failures, self.pod.ended) == ([], []), "an owner that should go on has ended"
            await asyncio.sleep(reply.retry_after_ms / 1000)


@asynccontextmanager
async def owning(name: str, journal: Journal, actors: Sequence[ActorId] = SHARED) -> AsyncGenerator[Owner]:
    """Hold some actors for the length of a `with` block; nothing of it may have failed."""
    pod = Pod(name, journal)
    owner = Owner(pod, journal, {actor: await pod.start(actor=actor, name=actor.id) for actor in actors})
    yield owner
    for vm in owner.vms.values():
        await vm.stop(snapshot=False)
    assert pod.failures == []


async def open_accounts(owner: Owner) -> None:
    """Open an account for each actor of an owner."""
    async with asyncio.TaskGroup() as opening:
        for actor in owner.vms:
            opening.create_task(owner.run(build_command("Open", {"owner": "all"}, id="open", actor=actor)), name=f"open {actor}")


async def check_owners(events: CommitLog, owners: Sequence[Owner], actors: Sequence[ActorId] = SHARED) -> list[StoredCommit]:
    """Check each actor's log against what its owners were told: all accepted, each stored once; returns all commits."""
    found: list[StoredCommit] = []
    for actor in actors:
        commits = await read_history(events, actor)
        check_log(commits)
        replies = [reply for owner in owners for reply in owner.replies[actor]]
        assert {reply.outcome for reply in replies} == {"accepted"}
        check_answers(commits, replies)
        assert len(events_of(commits)) == len(replies), "something was stored that nobody was told of"
        found += commits
    return found
