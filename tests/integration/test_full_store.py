"""A server that has no room any more, or for the moment: what is asked of it is answered, what is stored can be read, and all goes on when there is room."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from aether_api.errors import StreamFull
from aether_api.identity import parse_actor_id
from aether_api.messages import Reply
from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import StreamConfig
from aether_runtime.core.new_events import NewEvent
from aether_runtime.event_store import EventStore
from tests.histories.bank import ALICE, compile_account
from tests.histories.cluster import NAMESPACE, WAIT_S, connected, running_pod, until

FILLER = "FILLER"
ROOM_BYTES = 2_000_000


async def fill(js: JetStream) -> None:
    """Use up all room that there is."""
    await js.create_stream(StreamConfig(FILLER, ("filler",)))
    for size in (100_000, 1_000, 1):
        with pytest.raises(StreamFull):
            while True:
                await js.publish("filler", b"x" * size)


def tell(reply: Reply) -> tuple[str, int, str]:
    return reply.outcome, reply.version, reply.reason


async def test_a_full_store_stops_writes_and_not_reads_and_all_goes_on_when_there_is_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    limited = f'jetstream {{ store_dir: "{tmp_path / "store"}", max_file_store: {ROOM_BYTES} }}'
    async with (
        EmbeddedServer.start(tmp_path, extra_config=limited) as server,
        connected(server.url) as connection,
        running_pod(server.url, "a", models=[compile_account()]),
    ):
        js, client, store = JetStream(connection), CommandClient(connection), await EventStore.open(connection, NAMESPACE)
        assert tell(await client.send(ALICE, "Open", {"owner": "Alice"})) == ("accepted", 1, "")
        await fill(js)
        reply = await client.send(ALICE, "Deposit", {"amount": 1}, command_id="d1", timeout_s=1.5)
        assert tell(reply) == ("error", 1, "Busy")
        assert "insufficient resources" in reply.message
        assert tell(await client.send(ALICE, "Withdraw", {"amount": 7})) == ("rejected", 1, "InsufficientFunds")
        assert tell(await client.send(ALICE, "Deposit", {"amount": 7}, dry_run=True)) == ("accepted", 2, "")
        with pytest.raises(StreamFull, match="insufficient resources"):
            await client.send_durable(ALICE, "Deposit", {"amount": 2}, command_id="d2", timeout_s=1.5)
        with pytest.raises(StreamFull, match="insufficient resources"):
            await store.save_event(ALICE, NewEvent("Deposited", {"amount": 4}))
        assert "commits cannot be stored" in [record.message for record in caplog.records if record.levelname == "ERROR"]

        await js.delete_stream(FILLER)
        assert tell(await client.send(ALICE, "Deposit", {"amount": 1}, command_id="d1")) == ("accepted", 2, "")
        await client.send_durable(ALICE, "Deposit", {"amount": 2}, command_id="d2")

        async def has_all() -> bool:
            return (await client.send(ALICE, "Deposit", {"amount": 1}, dry_run=True)).state == {"owner": "Alice", "balance": 4, "open": True}

        await until(has_all)


async def test_a_burst_that_a_stream_cannot_hold_is_stored_in_the_end(tmp_path: Path) -> None:
    """Of so many at once this server drops most; one that fsyncs each message holds 10,000, eight seconds of work."""
    limited = f'jetstream {{ store_dir: "{tmp_path / "store"}", sync_interval: always, max_buffered_msgs: 4 }}'
    actors = [parse_actor_id(NAMESPACE, "account", f"a{number}") for number in range(40)]
    async with (
        EmbeddedServer.start(tmp_path, extra_config=limited) as server,
        connected(server.url) as connection,
        running_pod(server.url, "a", models=[compile_account()]) as pod,
        asyncio.TaskGroup() as tasks,
    ):
        client, inbox = CommandClient(connection), pod.runtime.inbox
        assert inbox is not None
        opened = [tasks.create_task(client.send(actor, "Open", {"owner": "x"}, timeout_s=WAIT_S)) for actor in actors]
        receipts = [tasks.create_task(client.send_durable(actor, "Deposit", {"amount": 1}, timeout_s=WAIT_S)) for actor in actors]
        await asyncio.wait([*opened, *receipts])
        assert {tell(reply.result())[0] for reply in opened} == {"accepted"}
        assert {receipt.result().repeated for receipt in receipts} == {False}
        await until(lambda: inbox.settled == len(actors))
