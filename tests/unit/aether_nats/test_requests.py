"""The request table: every future ends exactly once, by a reply, its deadline or the loss of the link."""

from __future__ import annotations

import asyncio

import pytest

from aether_api.errors import Disconnected, NoResponders, RequestTimeout
from aether_nats.requests import RequestTable

pytestmark = pytest.mark.asyncio

NO_RESPONDERS = b"NATS/1.0 503\r\n\r\n"
END_OF_BATCH = b"NATS/1.0 204 EOB\r\n\r\n"


def build_table() -> RequestTable:
    return RequestTable(asyncio.get_running_loop())


async def test_a_reply_reaches_only_its_request() -> None:
    table = build_table()
    first_reply, first = table.add("a", 60)
    _, second = table.add("b", 60)
    table(first_reply.encode(), b"", b"", b"answer")
    assert first.result().payload == b"answer"
    assert not second.done()
    assert len(table) == 1
    table.fail_all(Disconnected("bye"))
    with pytest.raises(Disconnected):
        await second


async def test_a_second_reply_and_a_foreign_one_are_dropped() -> None:
    table = build_table()
    reply, future = table.add("a", 60)
    for payload in (b"1", b"2"):
        table(reply.encode(), b"", b"", payload)
    table(b"_INBOX.someone.1", b"", b"", b"3")
    assert future.result().payload == b"1"


async def test_no_responders_fails_the_request() -> None:
    table = build_table()
    reply, future = table.add("a.b", 60)
    table(reply.encode(), b"", NO_RESPONDERS, b"")
    with pytest.raises(NoResponders, match=r"a\.b"):
        await future


async def test_a_row_of_replies_ends_with_a_status() -> None:
    table = build_table()
    reply, future = table.add_many("a", 60)
    for raw_headers, payload in ((b"", b"1"), (b"", b"2"), (END_OF_BATCH, b"")):
        table(reply.encode(), b"", raw_headers, payload)
    assert [(message.payload, message.status) for message in future.result()] == [(b"1", 0), (b"2", 0), (b"", 204)]


async def test_an_earlier_deadline_fires_first_and_empties_the_table() -> None:
    table = build_table()
    _, slow = table.add("slow", 0.04)
    _, quick = table.add_many("quick", 0.01)
    with pytest.raises(RequestTimeout, match="quick"):
        await quick
    assert not slow.done()
    with pytest.raises(RequestTimeout, match="slow"):
        await slow
    assert len(table) == 0


async def test_a_request_that_its_caller_gave_up_does_no_harm() -> None:
    table = build_table()
    reply, future = table.add("a", 60)
    _, other = table.add("b", 60)
    future.cancel()
    other.cancel()
    table(reply.encode(), b"", b"", b"late")
    table.fail_all(Disconnected("bye"))
    assert len(table) == 0


async def test_a_request_that_was_never_sent_is_forgotten() -> None:
    table = build_table()
    reply, _ = table.add("a", 60)
    table.discard(reply)
    assert len(table) == 0
