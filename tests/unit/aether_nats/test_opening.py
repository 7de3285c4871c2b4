"""When a connection gives up at its opening, and who is told of its end."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from aether_api.errors import Disconnected
from aether_nats.connection import REFUSED_S, NatsConnection, is_refused_for_good
from aether_nats.fast import FastLink
from aether_nats.settings import NatsSettings


@pytest.mark.parametrize(("refusals", "refused_s", "for_good"), [(3, 0.01, False), (2, REFUSED_S, False), (3, REFUSED_S, True), (9, REFUSED_S + 1, True)])
def test_opening_is_given_up_after_several_refusals_and_some_time(refusals: int, refused_s: float, for_good: bool) -> None:
    assert is_refused_for_good(refusals, refused_s) is for_good


async def test_a_refusal_while_an_opening_that_failed_is_closed_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(self: FastLink) -> None:
        await asyncio.Event().wait()

    async def refuse(self: NatsConnection, timeout_s: float = 0.0) -> None:
        for _ in range(3):
            self._on_error(Exception("nats: 'Authorization Violation'"))

    monkeypatch.setattr("aether_nats.connection.REFUSED_S", 0.0)
    monkeypatch.setattr(FastLink, "open", hang)
    monkeypatch.setattr(NatsConnection, "close", refuse)
    with pytest.raises(Disconnected, match="cannot reach NATS"):
        await NatsConnection.open(NatsSettings(connect_timeout_s=0.01))


async def test_who_listens_for_the_end_is_told_once_also_where_the_link_is_down_already(monkeypatch: pytest.MonkeyPatch) -> None:
    connection = NatsConnection(NatsSettings(), asyncio.get_running_loop())
    told: list[str] = []
    connection.on_close(lambda: told.append("closed"))
    connection._on_down()
    assert told == [], "the link may come back"
    monkeypatch.setattr(FastLink, "client", SimpleNamespace(is_closed=True, is_connected=False))
    connection._on_down()
    connection._on_down()
    assert told == ["closed"]
