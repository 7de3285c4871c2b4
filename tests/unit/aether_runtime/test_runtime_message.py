"""Messages of a program that embeds a runtime: how they are made, and how often they are tried."""

from __future__ import annotations

import math
import time
from typing import Any, cast
from uuid import UUID

import msgspec
import pytest

from aether_api.errors import InvalidEnvelope, InvalidName, Reason
from aether_api.identity import CommandId
from aether_api.messages import Command, Reply, build_error
from aether_nats.client import CommandClient
from aether_nats.connection import NatsConnection
from aether_runtime.runtime_message import RuntimeMessage, send_until, take_command
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


WRONG_ARGUMENTS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"command_id": 7}, InvalidEnvelope, "command_id must be a text, not 7 .*; write command_id='7'"),
    ({"command_id": 0}, InvalidEnvelope, "command_id must be a text"),
    ({"command_id": UUID(int=7)}, InvalidEnvelope, "command_id must be a text, not UUID.*; write command_id='00000000-"),
    ({"command_id": "a\r\nAether-Dry-Run: true"}, InvalidEnvelope, "command_id must be 1 to 128 printable characters"),
    ({"command_id": ""}, InvalidEnvelope, "command_id must be 1 to 128 printable characters, not ''"),
    ({"command_id": "x" * 129}, InvalidEnvelope, "command_id must be 1 to 128 printable characters"),
    ({"timeout_s": 0}, InvalidEnvelope, "timeout_s must be a number of seconds above 0, not 0"),
    ({"timeout_s": math.nan}, InvalidEnvelope, "timeout_s must be a number of seconds above 0, not nan"),
    ({"timeout_s": math.inf}, InvalidEnvelope, "timeout_s must be a number of seconds above 0, not inf"),
    ({"timeout_s": "3"}, InvalidEnvelope, "timeout_s must be a number of seconds above 0, not '3'"),
    ({"expected_version": "1"}, InvalidEnvelope, "expected_version must be a whole number of at least 0, not '1'"),
    ({"expected_version": -1}, InvalidEnvelope, "expected_version must be a whole number"),
    ({"fields": [1]}, InvalidEnvelope, "fields must be an object"),
    ({"fields": None}, InvalidEnvelope, "fields must be an object"),
    ({"fields": '{"amount": 1}'}, InvalidEnvelope, "fields must be an object"),
    ({"fields": {"amount": math.nan}}, InvalidEnvelope, "field amount is nan"),
    ({"fields": {"amount": object()}}, InvalidEnvelope, "fields are no JSON: 'amount'"),
    ({"command": None}, InvalidName, "command None must begin with a letter"),
    ({"actor": "default/account/alice"}, InvalidName, r"actor must be an ActorId, as parse_actor_id\(namespace, model, id\) gives, not 'default/account/alice'"),
]


@pytest.mark.parametrize(("arguments", "error", "why"), WRONG_ARGUMENTS, ids=[f"{number} {next(iter(arguments))}" for number, (arguments, _, _) in enumerate(WRONG_ARGUMENTS)])
def test_a_wrong_argument_raises_at_once_and_is_named(arguments: dict[str, Any], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        RuntimeMessage.build(**{"actor": ALICE, "command": "Deposit", "fields": {"amount": 1}, **arguments})


async def test_a_client_of_another_process_refuses_the_same() -> None:
    client = CommandClient(cast("NatsConnection", None))
    for send in (client.send, client.send_durable):
        with pytest.raises(InvalidEnvelope, match="command_id must be a text"):
            await send(ALICE, "Deposit", command_id=cast("str", 7))


def test_a_message_that_was_put_together_otherwise_never_reaches_a_vm_with_an_id_that_is_no_text() -> None:
    message = RuntimeMessage.build(ALICE, "Deposit")
    assert take_command(message, "default") is message.command
    with pytest.raises(InvalidEnvelope, match="command_id must be a text"):
        take_command(RuntimeMessage(msgspec.structs.replace(message.command, id=cast("CommandId", 7))), "default")
    with pytest.raises(InvalidEnvelope, match="must be a RuntimeMessage"):
        take_command(message.command, "default")
    with pytest.raises(InvalidName, match="default/account/alice is of namespace default, this runtime serves shop"):
        take_command(message, "shop")


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
