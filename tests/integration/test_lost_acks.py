"""Two owners of each of several actors, whose links drop right after an append was sent: nothing is stored twice, nothing acknowledged is missing.

This is the experiment that found the rule for lost acks: writers that looked only at the actor's last message after a refusal
stored a third of the unacknowledged commits twice, because the other one had written meanwhile.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Final
from urllib.parse import urlsplit

import pytest

from aether_api.envelope import Commit
from aether_api.errors import VersionConflictError
from aether_api.identity import ActorId, parse_actor_id
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.journal import Journal
from aether_nats.settings import NatsSettings
from tests.histories.owners import SHARED, Owner, check_owners, open_accounts, owning
from tests.histories.places import Place
from tests.integration.links import CutLink

MANY: Final = [parse_actor_id("default", "account", f"many-{number}") for number in range(60)]
"""Enough actors that their commits go together."""

DROPPED: Final = 0.1
"""Share of appends after which the link drops."""

TIMEOUT_S: Final = 240.0
"""Seconds for everything; some 5 on a quiet machine."""


class DroppingJournal(Journal):
    """A log whose link drops right after a tenth of the appends was sent.

    Attributes:
        refused: ids of the commits that were refused, perhaps because they had been stored already.
    """

    def __init__(self, connection: NatsConnection, link: CutLink, *, seed: int, batches: bool = False) -> None:
        super().__init__(JetStream(connection), 1, batches=batches)
        self._link = link
        self._random = random.Random(seed)
        self.drops = 0
        self.refused: set[str] = set()

    def append(self, commit: Commit) -> asyncio.Future[int]:
        """Send a commit, and perhaps lose its ack."""
        if self._random.random() < DROPPED:
            self.drops += 1
            self._link.drop_next_answer()
        outcome = super().append(commit)
        outcome.add_done_callback(lambda done: self._note(commit, done))
        return outcome

    def _note(self, commit: Commit, outcome: asyncio.Future[int]) -> None:
        if not outcome.cancelled() and isinstance(outcome.exception(), VersionConflictError):
            self.refused.add(commit.id)


@asynccontextmanager
async def owning_behind_a_link(place: Place, number: int, actors: Sequence[ActorId] = SHARED, *, batches: bool = False) -> AsyncGenerator[tuple[Owner, DroppingJournal]]:
    servers = place.settings.servers
    port = urlsplit(servers[number % len(servers)]).port
    assert port is not None
    async with CutLink.to(port) as link:
        connection = await NatsConnection.open(replace(place.settings, servers=(link.url,)))
        try:
            journal = DroppingJournal(connection, link, seed=number, batches=batches)
            async with owning(f"owner-{number}", journal, actors) as owner:
                yield owner, journal
        finally:
            await connection.close()


@pytest.mark.slow
async def test_two_owners_whose_acks_are_lost_store_each_command_once(place: Place) -> None:
    await run_owners(place, SHARED, deposits=25)


@pytest.mark.slow
async def test_two_owners_whose_batches_lose_their_acks_store_each_command_once() -> None:
    async with EmbeddedServer.start(sync_always=True) as server:
        journals = await run_owners(Place(NatsSettings((server.url,)), 1), MANY, deposits=3, batches=True)
    assert any(journal.batched for journal in journals), "no batch was acknowledged"  # one owner may lose all of his acks


async def run_owners(place: Place, actors: Sequence[ActorId], *, deposits: int, batches: bool = False) -> list[DroppingJournal]:
    """Let two owners deposit to all actors at once, and check what is stored against what they were told."""
    async with place.with_streams() as connection, asyncio.timeout(TIMEOUT_S), AsyncExitStack() as stack:
        pairs = [await stack.enter_async_context(owning_behind_a_link(place, number, actors, batches=batches)) for number in range(2)]
        owners = [owner for owner, _ in pairs]
        await open_accounts(owners[0])
        async with asyncio.TaskGroup() as load:
            for owner in owners:
                for actor in actors:
                    load.create_task(owner.deposit(actor, range(deposits)), name=f"{owner.pod.name} {actor}")
        stored = {commit.id for commit in await check_owners(Journal(JetStream(connection), 1), owners, actors)}
    for _, journal in pairs:
        assert journal.drops, "no link ever dropped"
        assert journal.resent, "nothing was ever sent again"
        assert stored & journal.refused, "no commit was stored whose ack was lost"
    return [journal for _, journal in pairs]
