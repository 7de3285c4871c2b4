"""A runtime as a process of its own: killed under load, ended in order, left without NATS, given wrong manifests."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from aether_api.errors import NoResponders, OutcomeUnknown, Reason
from aether_api.identity import ActorId, parse_actor_id
from aether_api.subjects import snapshot_stream
from aether_cli.send import run as run_send
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.streams import PARTITIONS_DEFAULT, StreamPlan, delete_streams, ensure_streams, read_layout
from tests.histories.bank import FOLDER
from tests.histories.cluster import WAIT_S, Load, RuntimeProcess, connected, open_journal, running_pod, until
from tests.histories.commits import append_broken
from tests.histories.invariants import check_answers, check_log, events_of, read_history

ACTORS = [parse_actor_id("default", "account", id) for id in ("alice", "bob", "carol", "dave", "erin")]
ALICE = ACTORS[0]


async def check_everything(connection: NatsConnection, load: Load, deposits: int) -> None:
    """Every deposit was acknowledged, is stored once, and nothing else is stored."""
    assert {reply.outcome for _, reply in load.replies} == {"accepted"}
    journal = await open_journal(connection)
    stored = 0
    for actor in load.actors:
        commits = await read_history(journal, actor)
        check_log(commits)
        check_answers(commits, load.replies_of(actor))
        stored += sum(event.type == "Deposited" for event in events_of(commits))
    assert stored == deposits


async def balance_of(client: CommandClient, actor: ActorId) -> tuple[int, object]:
    reply = await client.send(actor, "Open", {"owner": actor.id}, dry_run=True, timeout_s=WAIT_S)
    assert reply.state is not None
    return reply.version, reply.state["balance"]


async def test_a_runtime_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(nats_server: EmbeddedServer) -> None:
    deposits = 1200
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url) as runtime:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()

        async def kill() -> None:
            for share in (1, 2):
                await until(partial(load.has_sent, deposits * share // 3))
                await runtime.end(signal.SIGKILL)
                await runtime.run()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(deposits)))
            tasks.create_task(kill())
        await check_everything(connection, load, deposits)
        versions = [await balance_of(load.client, actor) for actor in ACTORS]
        assert versions == [(1 + deposits // 5, deposits // 5)] * 5


async def test_nats_that_is_killed_again_and_again_loses_nothing_and_does_nothing_twice(nats_server: EmbeddedServer) -> None:
    deposits = 1500
    async with running_pod(nats_server.url, "pod-a"), connected(nats_server.url) as connection:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()

        async def kill() -> None:
            for share in (1, 2, 3):
                await until(partial(load.has_sent, deposits * share // 4))
                await nats_server.kill()
                await nats_server.run()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(deposits)))
            tasks.create_task(kill())
        await check_everything(connection, load, deposits)


async def test_sigterm_under_load_ends_with_code_zero_and_leaves_snapshots(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url) as runtime:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()

        async def end() -> None:
            await until(lambda: load.sent > 200)
            assert await runtime.end(signal.SIGTERM, timeout_s=10) == 0
            info = await JetStream(connection).stream_info(snapshot_stream("default"))
            assert info is not None
            assert info.state.messages == len(ACTORS)
            await runtime.run()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.deposit(range(600)))
            tasks.create_task(end())
        await check_everything(connection, load, 600)


async def test_sigterm_ends_a_runtime_whose_nats_is_away(nats_server: EmbeddedServer) -> None:
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url) as runtime:
        await Load(CommandClient(connection), ACTORS).open()
        await nats_server.kill()
        assert await runtime.end(signal.SIGTERM, timeout_s=15) == 0


async def test_a_runtime_whose_streams_were_made_anew_with_other_partitions_says_so_and_ends(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    log, partitions = tmp_path / "log", 2 * PARTITIONS_DEFAULT
    async with connected(nats_server.url) as connection, RuntimeProcess(FOLDER, nats_server.url, log=log) as runtime:
        load = Load(CommandClient(connection), ACTORS)
        await load.open()
        await delete_streams(connection, "default")
        await ensure_streams(connection, "default", StreamPlan(partitions))
        with contextlib.suppress(OutcomeUnknown, NoResponders):
            await load.client.send(ALICE, "Deposit", {"amount": 1}, timeout_s=1)
        async with asyncio.timeout(WAIT_S):
            assert await runtime.process.wait() == 1
    last = log.read_text().splitlines()[-1]
    assert "the runtime cannot go on" in last
    assert f"made anew with {partitions} partitions, {PARTITIONS_DEFAULT} when" in last


@pytest.mark.slow
async def test_a_runtime_without_nats_says_so_and_ends(tmp_path: Path) -> None:
    log = tmp_path / "log"
    runtime = RuntimeProcess(FOLDER, "nats://127.0.0.1:9", log=log)
    async with runtime:
        async with asyncio.timeout(30):
            assert await runtime.process.wait() == 1
    assert "127.0.0.1:9" in log.read_text()


async def test_a_folder_that_is_not_there_is_named(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    runtime = RuntimeProcess(tmp_path / "nowhere", nats_server.url, log=tmp_path / "log")
    async with runtime:
        async with asyncio.timeout(30):
            assert await runtime.process.wait() == 1
    assert "nowhere" in (tmp_path / "log").read_text()


async def test_a_folder_that_is_not_there_is_named_before_anybody_waits_for_nats(tmp_path: Path) -> None:
    runtime = RuntimeProcess(tmp_path / "nowhere", "nats://127.0.0.1:9", log=tmp_path / "log")
    async with runtime:
        async with asyncio.timeout(30):
            assert await runtime.process.wait() == 1
    told = (tmp_path / "log").read_text()
    assert "nowhere is not a folder of manifests" in told
    assert "127.0.0.1:9" not in told


@pytest.mark.parametrize(
    ("file", "old", "new", "named", "reason"),
    [
        ("20-accounts.yaml", "name: bob\nspec:\n  model: account", "name: bob\nspec:\n  model: account\n  snapshots: {every: 5}", "spec.snapshots", None),
        ("20-accounts.yaml", "name: bob\nspec:\n  model: account", "name: bob\nspec:\n  model: account\n  id: bob smith", "spec.id", None),
        ("10-account-model.yaml", "state.balance >= command.amount", "state.balance >= command.amuont", "spec.commands.Withdraw.guards[1].rule", Reason.UNKNOWN_MODEL),
        ("10-account-model.yaml", "onDemand: true", "onDemnad: true", "spec.onDemnad", Reason.UNKNOWN_MODEL),
    ],
    ids=["unknown field", "wrong id", "CEL error", "misspelt model"],
)
async def test_a_wrong_manifest_is_refused_by_field_and_nothing_of_it_runs(
    nats_server: EmbeddedServer, tmp_path: Path, file: str, old: str, new: str, named: str, reason: Reason | None
) -> None:
    folder, log = tmp_path / "manifests", tmp_path / "log"
    shutil.copytree(FOLDER, folder)
    text = (folder / file).read_text()
    assert old in text
    (folder / file).write_text(text.replace(old, new))
    if reason is None:
        model = folder / "10-account-model.yaml"
        model.write_text(model.read_text().replace("onDemand: true", "onDemand: false"))
    async with connected(nats_server.url) as connection, RuntimeProcess(folder, nats_server.url, log=log):
        client = CommandClient(connection)
        while await connection_is_alone(client):
            await asyncio.sleep(0.05)
        reply = await client.send(parse_actor_id("default", "account", "bob"), "Open", {"owner": "bob"}, timeout_s=WAIT_S)
        assert (reply.outcome, reply.reason) == ("error", reason or Reason.UNKNOWN_ACTOR)
        assert named in log.read_text()
        head = await (await open_journal(connection)).read_head(parse_actor_id("default", "account", "bob"))
        assert head is None
        if reason is None:
            assert (await client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)).outcome == "accepted"


async def connection_is_alone(client: CommandClient) -> bool:
    """Whether no runtime serves the namespace yet; one that compiles its models answers nothing meanwhile."""
    try:
        await client.send(parse_actor_id("default", "none", "x"), "Open", timeout_s=1)
    except (NoResponders, OutcomeUnknown):
        return True
    return False


async def test_a_restarted_runtime_begins_from_its_snapshots(nats_server: EmbeddedServer, tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with connected(nats_server.url) as connection:
        client = CommandClient(connection)
        async with RuntimeProcess(FOLDER, nats_server.url, pod_uid="one") as first:
            await client.send(ALICE, "Open", {"owner": "alice"}, timeout_s=WAIT_S)
            await Load(client, [ALICE]).deposit(range(50), clients=1)
            assert await first.end(signal.SIGTERM) == 0
        journal = await open_journal(connection)
        commits = await read_history(journal, ALICE)
        # What lies before the snapshot is not read any more: without it the actor still has its balance.
        layout = await read_layout(connection, "default")
        assert layout is not None
        assert await JetStream(connection).purge(layout.event_stream(ALICE), layout.event_subject(ALICE), keep=1) == 50
        async with RuntimeProcess(FOLDER, nats_server.url, log=log, pod_uid="two"):
            assert await balance_of(client, ALICE) == (51, 50)
        assert len(commits) == 51


async def run_cli(*arguments: str) -> tuple[int, str, str]:
    """Run `aether` and return exit code, output and errors."""
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "aether_cli.main", *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE)
    async with asyncio.timeout(60):
        output, errors = await process.communicate()
    return process.returncode or 0, output.decode(), errors.decode()


async def test_the_exit_code_of_send_tells_accepted_from_rejected_from_failed(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    async with running_pod(nats_server.url, "pod-a"):

        async def send(*arguments: str) -> int:
            code: int = await asyncio.to_thread(run_send, [*arguments, "--nats", nats_server.url])
            return code

        assert await send("account/zoe", "Open", "--set", "owner=zoe", "--id", "o1") == 0
        assert '"outcome": "accepted"' in capsys.readouterr().out
        assert await send("account/zoe", "Deposit", "--set", "amount=5", "--dry-run") == 0
        assert '"balance": 5' in capsys.readouterr().out
        assert await send("account/zoe", "Withdraw", "--set", "amount=5") == 3
        assert '"reason": "InsufficientFunds"' in capsys.readouterr().out
        assert await send("account/zoe", "Deposit", "--set", "amount=5", "--expect-version", "9") == 3
        assert await send("nothing/zoe", "Open") == 1
        with pytest.raises(SystemExit) as caught:
            run_send(["account/zoe"])
        assert caught.value.code == 2


async def test_the_command_line_explains_itself_and_prints_histories(nats_server: EmbeddedServer) -> None:
    async with running_pod(nats_server.url, "pod-a"), connected(nats_server.url) as connection:
        await Load(CommandClient(connection), [ALICE]).open()
        code, output, _ = await run_cli("history", "account/alice", "--nats", nats_server.url)
        assert (code, output.count("\n"), '"type":"Opened"' in output) == (0, 1, True)
        assert (await run_cli("history", "account/nobody", "--nats", nats_server.url))[:2] == (0, "")
        await append_broken(await open_journal(connection), ALICE)
        code, output, errors = await run_cli("history", "account/alice", "--nats", nats_server.url)
        assert (code, output.count("\n"), "cannot be read" in errors) == (1, 1, True)
    code, output, _ = await run_cli("--help")
    assert (code, "demo" in output, "send" in output) == (0, True, True)
    code, _, errors = await run_cli("fly")
    assert (code, "fly" in errors) == (2, True)
