"""Messages of a program that embeds a runtime: how they are made, and how often they are tried."""

from __future__ import annotations

import time

import pytest

from aether_api.errors import InvalidName, Reason
from aether_api.messages import Command, Reply, build_error
from aether_runtime.runtime_message import RuntimeMessage, send_until
from tests.histories.bank import ALICE

UNKNOWN = build_error(Reason.UNKNOWN, "lost", retry_after_ms=1)
BUSY = build_error(Reason.BUSY, "moving", retry_after_ms=1)
BROKEN = build_error(Reason.COMMAND_FAILED, "broken")
ACCEPTED = Reply("accepted", 1)


class Script:
    """Answers tries in order, the last answer for ever."""

    def __init__(self, *replies: Reply) -> None:
        self.replies = list(replies)
        self.tries: list[Command] = []

    async def try_once(self, command: Command) -> Reply:
        self.tries.append(command)
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    async def send(self, *, timeout_s: float = 30.0, runs: bool = True) -> Reply:
        message = RuntimeMessage.build(ALICE, "Deposit", {"amount": 1}, command_id="d", timeout_s=timeout_s)
        return await send_until(self.try_once, message.command, may_go_on=lambda: runs)


def test_a_message_is_made_now_and_has_an_id_of_its_own() -> None:
    before = time.time()
    messages = [RuntimeMessage.build(ALICE, "Deposit", {"amount": 1}, expected_version=3, dry_run=True).command for _ in range(2)]
    assert messages[0].id != messages[1].id
    assert (messages[0].payload, messages[0].expected_version, messages[0].dry_run, messages[0].timeout_s) == (b'{"amount":1}', 3, True, 10.0)
    assert before <= messages[0].unix_s <= time.time()
    with pytest.raises(InvalidName):
        RuntimeMessage.build(ALICE, "no command")


@pytest.mark.parametrize("reply", [ACCEPTED, Reply("rejected", 1, reason="Poor"), Reply("noop", 1), BROKEN])
async def test_a_final_answer_is_returned_at_once(reply: Reply) -> None:
    script = Script(reply)
    assert await script.send() == reply
    assert len(script.tries) == 1


async def test_a_lost_try_is_repeated_with_its_id_and_more_time() -> None:
    script = Script(UNKNOWN, BUSY, UNKNOWN, UNKNOWN, ACCEPTED)
    assert await script.send() == ACCEPTED
    assert {command.id for command in script.tries} == {"d"}
    assert [command.timeout_s for command in script.tries] == [1.0, 2.0, 4.0, 5.0, 5.0]


async def test_no_try_has_more_time_than_is_left() -> None:
    script = Script(BUSY)
    assert await script.send(timeout_s=0.02) == BUSY
    assert len(script.tries) > 1
    assert max(command.timeout_s for command in script.tries) <= 0.02


@pytest.mark.parametrize("last", [BUSY, BROKEN])
async def test_what_may_have_taken_effect_stays_unknown_until_somebody_tells(last: Reply) -> None:
    reply = await Script(UNKNOWN, last).send(timeout_s=0.02)
    assert (reply.outcome, reply.reason, reply.command_id) == ("error", "Unknown", "d")


async def test_a_runtime_that_stops_tries_no_more() -> None:
    script = Script(BUSY)
    assert await script.send(runs=False) == BUSY
    assert len(script.tries) == 1
