"""What the router does with an answer that cannot be sent."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from aether_api.errors import Reason
from aether_api.messages import Reply, decode_reply
from aether_runtime.core.group import Waiting
from aether_runtime.ports import Directory
from aether_runtime.router import Router
from aether_runtime.runtime import Runtime
from aether_runtime.vm import VirtualMachine
from tests.histories.bank import ALICE


class Wire:
    """The connection, as far as answers leave by it."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def respond(self, subject: bytes, payload: bytes) -> None:
        self.sent.append(payload)


class Saying:
    """A VM that has one answer to everything."""

    def __init__(self, reply: Reply) -> None:
        self.desired = self
        self.actor = ALICE
        self._reply = reply

    def process_command(self, waiting: Waiting) -> None:
        waiting.answer(self._reply)


NO_TEXT: Any = ValueError("no text")


@pytest.mark.parametrize("message", [NO_TEXT, "bad \ud800 text"])
async def test_the_caller_of_an_answer_that_cannot_be_sent_is_told_so(message: str) -> None:
    wire = Wire()
    router = Router(cast("Any", wire), cast("Directory", None), cast("Runtime", SimpleNamespace(spawn=None)))
    router.on_direct(cast("VirtualMachine", Saying(Reply("rejected", 3, reason="Invalid", message=message, command_id="c"))), b"cmd.x.Open", b"reply", b"", b"{}")
    (reply,) = [decode_reply(payload) for payload in wire.sent]
    assert (reply.outcome, reply.reason, reply.version, reply.command_id) == ("error", Reason.COMMAND_FAILED, 3, "c")
