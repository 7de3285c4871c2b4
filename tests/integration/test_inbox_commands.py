"""What the command line says of inboxes and dead letters, and does with them."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import orjson
import pytest

from aether_api import headers
from aether_api.subjects import dead_subject
from aether_cli.dead import run as run_dead
from aether_cli.history import run as run_history
from aether_cli.inbox import SHOWN_MAX
from aether_cli.inbox import run as run_inbox
from aether_cli.send import run as run_send
from aether_cli.status import run as run_status
from aether_nats.embedded import EmbeddedServer
from aether_nats.inbox import Inbox
from aether_nats.jetstream import JetStream
from aether_nats.schedules import Reminder, Schedules
from tests.histories.bank import ALICE
from tests.histories.cluster import connected, open_journal


class Terminal:
    """Runs commands as a person at a terminal would, and keeps what they print."""

    def __init__(self, server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
        self._options = ("--nats", server.url, "--namespace", "default")
        self._capsys = capsys

    async def __call__(self, run: Callable[[Sequence[str]], int], *arguments: str, code: int = 0) -> str:
        assert await asyncio.to_thread(run, [*arguments, *self._options]) == code
        printed = self._capsys.readouterr()
        return printed.out or printed.err


def lines(printed: str) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in printed.splitlines()]


async def test_a_durable_command_waits_where_the_inbox_shows_it(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        assert "nothing waits" in await terminal(run_inbox, "account/alice")
        receipt = orjson.loads(await terminal(run_send, "account/alice", "Deposit", "--set", "amount=5", "--id", "c-1", "--durable"))
        assert (receipt["command_id"], receipt["repeated"]) == ("c-1", False)
        assert orjson.loads(await terminal(run_send, "account/alice", "Deposit", "--id", "c-1", "--durable"))["repeated"]
        await Schedules(JetStream(connection)).set(ALICE, Reminder("interest", "AddInterest", b"{}", "@daily", zone="Europe/Berlin", missed="skip"), "t1")
        assert lines(await terminal(run_inbox)) == [{"actor": "account/alice", "waiting": 1}]
        command, reminder = lines(await terminal(run_inbox, "account/alice"))
        assert (command["sequence"], command["command"], command["id"], command["payload"]) == (receipt["sequence"], "Deposit", "c-1", '{"amount":5}')
        assert reminder == {"reminder": "interest", "command": "AddInterest", "schedule": "@daily", "missed": "skip", "zone": "Europe/Berlin", "payload": "{}"}


async def test_dead_letters_are_listed_shown_retried_and_dropped(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        inbox = Inbox(JetStream(connection), "default")
        for number in range(3):
            await terminal(run_send, "account/alice", "Deposit", "--set", f"amount={number}", "--id", f"c-{number}", "--durable")
        for message in await inbox.read_next(ALICE, 0):
            await inbox.bury(ALICE, message, "CommandFailed", "division by zero")
            await inbox.settle(ALICE, message.sequence)
        listed = lines(await terminal(run_dead, "list", "account/alice"))
        assert [(letter["command_id"], letter["reason"], letter["message"]) for letter in listed] == [(f"c-{number}", "CommandFailed", "division by zero") for number in range(3)]
        shown = orjson.loads(await terminal(run_dead, "show", "account/alice", str(listed[1]["sequence"])))
        assert shown["payload"] == '{"amount":1}'
        await terminal(run_dead, "drop", "account/alice", str(listed[0]["sequence"]))
        assert "waits again" in await terminal(run_dead, "retry", "account/alice", "--all")
        assert await inbox.read_dead(ALICE) == []
        assert [line["id"] for line in lines(await terminal(run_inbox, "account/alice"))] == ["c-1", "c-2"]


async def test_a_dead_letter_that_lost_its_payload_stays_when_all_are_retried(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        inbox = Inbox(JetStream(connection), "default")
        subject, lines = dead_subject(ALICE), {headers.COMMAND_NAME: "Deposit", headers.COMMAND: "c-1", headers.DEAD_REASON: "CommandFailed"}
        lost = (await JetStream(connection).publish(subject, b"", headers.encode_headers({**lines, headers.DEAD_LOST_BYTES: "8388000"}))).sequence
        whole = (await JetStream(connection).publish(subject, b"{}", headers.encode_headers(lines))).sequence
        assert orjson.loads(await terminal(run_dead, "show", "account/alice", str(lost)))["lost_bytes"] == 8388000
        assert "8388000 bytes" in await terminal(run_dead, "retry", "account/alice", str(lost), code=1)
        stays, waits = (await terminal(run_dead, "retry", "account/alice", "--all")).splitlines()
        assert (f"{lost} stays" in stays, f"{whole} waits again" in waits) == (True, True)
        assert [letter.sequence for letter in await inbox.read_dead(ALICE)] == [lost]


async def test_a_thousand_dead_letters_and_more_are_all_retried_and_an_inbox_says_that_it_holds_more_than_it_shows(
    nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        lines = headers.encode_headers({headers.COMMAND_NAME: "Deposit", headers.DEAD_REASON: "CommandFailed"})
        count = SHOWN_MAX + 100
        for _ in range(count):
            await JetStream(connection).publish(dead_subject(ALICE), b"{}", lines)
        assert len((await terminal(run_dead, "list", "account/alice")).splitlines()) == count
        assert len((await terminal(run_dead, "retry", "account/alice", "--all")).splitlines()) == count
        assert await Inbox(JetStream(connection), "default").read_dead(ALICE) == []
        assert await asyncio.to_thread(run_inbox, ["account/alice", "--nats", nats_server.url, "--namespace", "default"]) == 0
        printed = capsys.readouterr()
        assert (len(printed.out.splitlines()), printed.err) == (SHOWN_MAX, "aether inbox: the first 1000 durable commands are shown, more wait\n")


async def test_a_list_of_large_dead_letters_does_not_hold_their_payloads(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        js, found = JetStream(connection), headers.encode_headers({headers.COMMAND_NAME: "Deposit", headers.COMMAND: "c-1", headers.DEAD_REASON: "CommandFailed"})
        for _ in range(24):
            await js.publish(dead_subject(ALICE), b"x" * 1_000_000, found)
        tracemalloc.start()
        listed = lines(await terminal(run_dead, "list", "account/alice"))
        _, peak_bytes = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(listed) == 24
        assert peak_bytes < 12_000_000, "of 48 MB, as bytes and as texts"


async def test_no_dead_letters_are_told(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        for verb in (("list", "account/alice"), ("retry", "account/alice", "--all"), ("drop", "account/alice", "--all")):
            assert await terminal(run_dead, *verb) == "aether dead: account/alice has no dead letters in namespace default\n"


NOBODY: list[tuple[Callable[[Sequence[str]], int], tuple[str, ...], str]] = [
    (run_send, ("account/alice", "Open", "--timeout", "0.5"), "no runtime serves namespace default"),
    (run_status, (), "no runtime serves namespace default"),
    (run_status, ("account/alice",), "no runtime serves namespace default"),
    (run_send, ("account/alice", "Open", "--durable", "--timeout", "3"), "nothing is kept for namespace default now; if no runtime has served it yet,"),
    (run_inbox, (), "nothing is kept for namespace default now"),
    (run_inbox, ("account/alice",), "nothing is kept for namespace default now"),
    (run_dead, ("list", "account/alice"), "nothing is kept for namespace default now"),
    (run_history, ("account/alice",), "nothing is kept for namespace default now"),
]


@pytest.mark.parametrize(("run", "arguments", "why"), NOBODY)
async def test_where_nobody_serves_the_way_out_is_told(
    nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str], run: Callable[[Sequence[str]], int], arguments: tuple[str, ...], why: str
) -> None:
    told = await Terminal(nats_server, capsys)(run, *arguments, code=1)
    assert why in told
    assert "start one (`aether runtime --folder FOLDER --namespace default`), or check --namespace and --nats" in told


async def test_a_dead_letter_that_is_not_there_is_told(nats_server: EmbeddedServer, capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal(nats_server, capsys)
    async with connected(nats_server.url) as connection:
        await open_journal(connection)
        for verb in ("show", "retry", "drop"):
            assert "no dead letter 7" in await terminal(run_dead, verb, "account/alice", "7", code=1)


def test_wrong_usage_is_told_before_anything_happens() -> None:
    for run, arguments in ((run_send, ["account/alice", "Deposit", "--durable", "--dry-run"]), (run_dead, ["retry", "account/alice"]), (run_dead, ["account/alice"])):
        with pytest.raises(SystemExit) as ended:
            run(arguments)
        assert ended.value.code == 2
