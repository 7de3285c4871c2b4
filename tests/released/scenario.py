"""Lives of actors that use everything a release can store, run by its real runtime on a real server."""

from __future__ import annotations

import asyncio
import importlib
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_api.messages import Reply, encode_reply
from aether_model.model import Model
from aether_model.python_compile import compile_python
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from tests.histories.cluster import NAMESPACE, WAIT_S, Placements, RunningPod, connected, open_journal, running_pod
from tests.released.loading import released_models

LONG_COMMITS: Final = 1100
"""Commits of the actor with the long index: more than the 1,024 that close a block of two levels."""

ANSWERS_KEPT: Final = 50
"""Answers on record for each actor: fewer than the 64 commands that an actor knows at least."""

FAR: Final = "2099-01-01T00:00:00Z"


class Scenario:
    """One run; what the runtime said of each actor is in `expected`."""

    def __init__(self, url: str, version: str) -> None:
        self._url = url
        self._version = version
        self._answers: dict[ActorId, dict[str, Any]] = {}
        self.expected: dict[str, Any] = {}

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[NatsConnection]:
        """Connect for the length of a `with` block."""
        async with connected(self._url) as connection:
            await open_journal(connection)
            yield connection

    async def run_first_edition(self) -> None:
        """Let the first edition of the ledger store what the second one must read."""
        with released_models(self._version):
            module = importlib.import_module(f"ledger_{self._version.replace('.', '_')}_before")
            async with self._pod(models=(compile_python(module.Ledger),), epoch=0) as (client, _):
                await self._send(client, ledger("books"), "Book", {"euros": [1, 2, 3]}, "first-1")
                await self._send(client, ledger("books"), "Book", {"euros": [4]}, "first-2")

    async def run_everything(self, connection: NatsConnection) -> None:
        """Use everything once."""
        async with self._pod(epoch=7) as (client, _):
            for id in ("plain", "busy", "long", "reborn", "lender", "forgiven", "durable", "placed"):
                await self._send(client, account(id), "Open", {"owner": id}, f"{id}-open")
                await self._send(client, account(id), "Deposit", {"amount": 1000}, f"{id}-first")
            await self._send(client, account("plain"), "Withdraw", {"amount": 300}, "plain-withdraw")
            await self._send(client, account("plain"), "Swap", {"amount": 5}, "plain-swap")
            await self._send_all(client, account("busy"), range(40))
            for number in range(LONG_COMMITS):
                await self._send(client, account("long"), "Deposit", {"amount": 1}, f"long-{number}")
            await self._bear_again(client, connection)
            await self._set_reminders(client)
            await self._run_durable(client, connection)
            await self._send(client, ledger("books"), "Book", {"cents": [250, 50]}, "second-1")

    async def run_after_snapshots(self) -> None:
        """Store more behind the snapshots, and note what is said of each actor in the end."""
        async with self._pod(epoch=8) as (client, pod):
            for actor in list(self._answers):
                command, fields = ("Book", {"cents": [7]}) if actor.model == "ledger" else ("Deposit", {"amount": 7})
                await self._send(client, actor, command, fields, f"{actor.id}-last")
            for actor, vm in pod.runtime.get_active_vms().items():
                self.expected[f"{actor.model}/{actor.id}"] = {
                    "version": vm.get_version(),
                    "state": vm.get_state(),
                    "inbox": str(vm.inbox),
                    "reminders": dict(vm.reminders),
                    "epoch": int(vm.desired.epoch),
                    "answers": dict(list(self._answers[actor].items())[-ANSWERS_KEPT:]),
                }

    async def leave_waiting(self, connection: NatsConnection) -> None:
        """Leave durable commands behind that nobody has run; each of them deposits 100."""
        client = CommandClient(connection)
        for number in range(2):
            await client.send_durable(account("durable"), "Deposit", {"amount": 100}, command_id=f"waiting-{number}")
        self.expected["account/durable"]["waiting"] = ["waiting-0", "waiting-1"]

    @asynccontextmanager
    async def _pod(self, *, epoch: int, models: tuple[Model, ...] = ()) -> AsyncIterator[tuple[CommandClient, RunningPod]]:
        placements = Placements(models=[])
        with released_models(self._version) as resources:
            if not models:
                placements.models += resources
                placements.place(account("placed"), PodUid("pod"), epoch)
            async with running_pod(self._url, "pod", placements, models=models) as pod:
                yield CommandClient(pod.connection), pod

    async def _send(self, client: CommandClient, actor: ActorId, command: str, fields: Mapping[str, object], id: str) -> None:
        self._note(actor, await client.send(actor, command, fields, command_id=id, timeout_s=WAIT_S))

    async def _send_all(self, client: CommandClient, actor: ActorId, numbers: Iterable[int]) -> None:
        """Send at once, so that many share a commit."""
        async with asyncio.TaskGroup() as sending:
            for number in numbers:
                sending.create_task(self._send(client, actor, "Deposit", {"amount": number + 1}, f"{actor.id}-{number}"))

    async def _bear_again(self, client: CommandClient, connection: NatsConnection) -> None:
        await (await open_journal(connection)).purge(account("reborn"), epoch=Epoch(0), writer="operator")
        self._answers[account("reborn")] = {}
        await self._send(client, account("reborn"), "Open", {"owner": "again"}, "reborn-again")
        await self._send(client, account("reborn"), "Deposit", {"amount": 5}, "reborn-deposit")

    async def _set_reminders(self, client: CommandClient) -> None:
        for id in ("lender", "forgiven"):
            await self._send(client, account(id), "Lend", {"amount": 20, "due": FAR}, f"{id}-lend")
        await self._send(client, account("forgiven"), "Forgive", {}, "forgiven-forgive")

    async def _run_durable(self, client: CommandClient, connection: NatsConnection) -> None:
        """Run durable commands, one of which fails until it is given up."""
        inbox = Inbox(JetStream(connection), NAMESPACE)
        for number in range(3):
            await client.send_durable(account("durable"), "Deposit", {"amount": 10}, command_id=f"durable-{number}")
        await client.send_durable(account("durable"), "Divide", {"by": 0}, command_id="durable-poison")
        async with asyncio.timeout(WAIT_S):
            while await inbox.read_backlog():
                await asyncio.sleep(0.05)

    def _note(self, actor: ActorId, reply: Reply) -> None:
        if reply.outcome != "accepted":
            raise ValueError(f"{actor}: {reply}")
        self._answers.setdefault(actor, {})[reply.command_id] = json.loads(encode_reply(reply))


def account(id: str) -> ActorId:
    """Return an account."""
    return parse_actor_id(NAMESPACE, "account", id)


def ledger(id: str) -> ActorId:
    """Return a ledger."""
    return parse_actor_id(NAMESPACE, "ledger", id)
