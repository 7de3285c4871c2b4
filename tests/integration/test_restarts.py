"""A VM that fails as soon as it is given something to do: it is left alone for longer and longer, and everybody is told."""

from __future__ import annotations

import asyncio

import pytest

from aether_api.envelope import Commit
from aether_api.errors import InternalError, Reason
from aether_api.identity import PodUid
from aether_api.v1alpha1 import ActorPhase
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_nats.journal import Journal
from tests.histories.bank import ALICE, read_account
from tests.histories.cluster import WAIT_S, Placements, connected, running_pod, until

POD = PodUid("pod-a")


async def test_a_vm_that_fails_at_its_first_group_is_not_started_again_by_the_next_command(nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    appends = 0

    def append(self: Journal, commit: Commit) -> asyncio.Future[int]:
        nonlocal appends
        appends += 1
        raise InternalError("the journal is broken")

    placements = Placements()
    placements.place(ALICE, POD, 1)
    async with running_pod(nats_server.url, POD, placements) as pod, connected(nats_server.url) as connection:
        client = CommandClient(connection)
        await until(lambda: ALICE in pod.sink.reports and pod.sink.reports[ALICE].phase is ActorPhase.READY)
        with monkeypatch.context() as broken:
            broken.setattr(Journal, "append", append)
            reply = await client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=2.5)
            assert reply.reason == Reason.BUSY
            assert 1 <= appends <= 2, "the second VM comes after a second, the third would after two more"
            await until(lambda: pod.sink.reports[ALICE].reason == "Restarting")
            assert "InternalError('the journal is broken')" in pod.sink.reports[ALICE].message
            assert [view.reason for view in pod.runtime.status.build(ALICE).actors] == ["Restarting"]
        pod.runtime.load_model(read_account())
        assert (await client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)).outcome == "accepted"
