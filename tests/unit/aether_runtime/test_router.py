"""What the router does with an answer that cannot be sent."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, Final, cast

import msgspec
import pytest
from msgspec import Raw

from aether_api.errors import PayloadTooLarge, Reason, RequestTimeout
from aether_api.messages import Reply, ReplyEvent, decode_reply
from aether_api.subjects import command_subject
from aether_nats.message import Message
from aether_runtime.core.group import Waiting
from aether_runtime.ports import Directory
from aether_runtime.router import CALLS_BYTES_MAX, CALLS_MAX, LOOK_AGAIN_MAX_S, LOOK_AGAIN_S, SEARCHES_SWIFT, Router
from aether_runtime.runtime import Runtime
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE, build_command

MAX_PAYLOAD: Final = 4096


class Wire:
    """The connection, as far as answers leave by it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def respond(self, subject: bytes, payload: bytes) -> None:
        if len(payload) > MAX_PAYLOAD:
            raise PayloadTooLarge(f"an answer of {len(payload)} bytes")
        self.sent.append(payload)


class Saying:
    """A VM that has one answer to everything."""

    def __init__(self, reply: Reply) -> None:
        self.desired = self
        self.actor = ALICE
        self._reply = reply

    def process_command(self, waiting: Waiting) -> None:
        waiting.answer(self._reply)


def answer_of(reply: Reply) -> Reply:
    """Return what the caller of a VM with this answer gets."""
    wire = Wire()
    router = Router(cast("Any", wire), cast("Directory", None), cast("Runtime", SimpleNamespace(spawn=None)))
    router.on_direct(cast("VirtualMachine", Saying(reply)), b"cmd.x.Open", b"reply", b"", b"{}")
    (sent,) = wire.sent
    return decode_reply(sent)


NO_TEXT: Any = ValueError("no text")


@pytest.mark.parametrize("message", [NO_TEXT, "bad \ud800 text"])
async def test_the_caller_of_an_answer_that_cannot_be_sent_is_told_so(message: str) -> None:
    reply = answer_of(Reply("rejected", 3, reason="Invalid", message=message, command_id="c"))
    assert (reply.outcome, reply.reason, reply.version, reply.command_id) == ("error", Reason.COMMAND_FAILED, 3, "c")


@pytest.mark.parametrize(
    "too_long",
    [
        Reply("accepted", 3, (ReplyEvent("Noted", 3, "", Raw(b'"%b"' % (b"x" * MAX_PAYLOAD))),), command_id="c"),
        Reply("accepted", 3, command_id="c", dry_run=True, state={"text": "x" * MAX_PAYLOAD}),
        Reply("rejected", 3, reason="Invalid", message="x" * MAX_PAYLOAD, command_id="c"),
    ],
    ids=["events", "state", "message"],
)
async def test_the_caller_of_an_answer_that_is_too_long_gets_what_matters_of_it(too_long: Reply) -> None:
    reply = answer_of(too_long)
    assert (reply.outcome, reply.reason, reply.version, reply.command_id, reply.dry_run) == (too_long.outcome, too_long.reason, 3, "c", too_long.dry_run)
    assert "shortened, without events and state" in reply.message


async def test_calls_that_look_for_their_actors_hold_so_many_bytes_and_no_more() -> None:
    searches: list[Coroutine[None, None, None]] = []
    runtime = SimpleNamespace(is_running=True, spawn=lambda work, name: searches.append(work))
    router = Router(cast("Any", Wire()), cast("Directory", None), cast("Runtime", runtime))
    quarter = msgspec.structs.replace(build_command("Deposit", {"amount": 1}, id="d"), payload=b" " * (CALLS_BYTES_MAX // 4))
    answers: list[Reply] = []
    for _ in range(5):
        router.serve(quarter, answers.append)
    assert (len(searches), [answer.reason for answer in answers]) == (4, [Reason.BUSY])
    assert f"4 calls of {CALLS_BYTES_MAX:,} bytes" in answers[0].message

    router.set_vm_provider(lambda actor: cast("VirtualMachine", Saying(Reply("noop", 1))))
    await searches[0]
    assert answers[-1].outcome == "noop"
    router.serve(quarter, answers.append)
    for search in searches[1:]:
        await search
    assert ([answer.outcome for answer in answers], router.searching) == (["error", *["noop"] * 5], 0)


async def test_the_more_calls_look_the_more_seldom_each_does() -> None:
    router = Router(cast("Any", Wire()), cast("Directory", None), cast("Runtime", SimpleNamespace(spawn=None)))
    pauses: list[float] = []
    for count in (1, SEARCHES_SWIFT, 10 * SEARCHES_SWIFT, CALLS_MAX):
        router._calls = count
        pauses.append(router._look_again_s)
    assert pauses == [LOOK_AGAIN_S, LOOK_AGAIN_S, 10 * LOOK_AGAIN_S, LOOK_AGAIN_MAX_S]


class DeafWire(Wire):
    """A connection on which nobody answers."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []

    def request(self, subject: str, payload: bytes, headers: bytes, timeout_s: float) -> asyncio.Future[Message]:
        self.asked.append(subject)
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Message] = loop.create_future()

        def give_up() -> None:
            if not answer.done():
                answer.set_exception(RequestTimeout("no answer"))

        loop.call_later(timeout_s, give_up)
        return answer


async def test_a_command_that_a_frozen_pod_may_have_taken_is_never_told_to_be_nowhere() -> None:
    wire = DeafWire()
    runtime = SimpleNamespace(
        is_running=True,
        is_leaving=False,
        find_model=lambda name: SimpleNamespace(on_demand=True),
        passivation=SimpleNamespace(find=lambda actor: None),
        presence=SimpleNamespace(pods=SimpleNamespace(live=lambda: ["me"], settled_s=1.0)),
        config=SimpleNamespace(pod=SimpleNamespace(uid="me")),
        activate=lambda desired: object(),
        spawn=None,
    )
    router = Router(cast("Any", wire), cast("Directory", None), cast("Runtime", runtime))
    lookup = SimpleNamespace(ask=lambda within_s: asyncio.sleep(0, True), known=True, home=None)
    answers: list[Reply] = []
    command = msgspec.structs.replace(build_command("Deposit", {"amount": 1}, id="d"), timeout_s=0.6)
    await router._serve_in_time(router._build_waiting(command, answers.append), cast("Any", lookup))
    assert command_subject("cmd", ALICE, "Deposit") in wire.asked
    assert [answer.reason for answer in answers] == [Reason.UNKNOWN]
