"""kopf's half of the operator outlives every outage of the API server."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from types import SimpleNamespace

import kopf
import pytest
from kopf._cogs.clients import api
from kopf._cogs.clients.auth import APIContext

from aether_kube.kinds import ACTOR_POOLS
from aether_operator.handlers.shell import build_kopf_settings
from aether_operator.settings import OperatorSettings
from tests.fake_apiserver import FakeApiServer, Fault

OUTAGE_TRIES = 40
"""Failed tries of one call: many more than kopf's default allows, which are eight."""

POOLS = ACTOR_POOLS.path("shop") + "?limit=500"


@pytest.mark.parametrize("status", [503, 500, 403, 429])
async def test_kopf_tries_a_call_until_the_api_server_works_again_and_begins_anew_with_the_next(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    delays: list[float] = []

    async def sleep(delay_s: float) -> None:
        delays.append(delay_s)

    monkeypatch.setattr(api, "asyncio", SimpleNamespace(sleep=sleep))
    settings, logger = build_kopf_settings(OperatorSettings()), logging.getLogger("kopf")
    async with FakeApiServer() as server, AsyncExitStack() as stack:
        context = APIContext(kopf.ConnectionInfo(server=server.url))
        stack.push_async_callback(context.close)
        for _ in range(2):
            server.faults.append(Fault(lambda _: True, status, times=OUTAGE_TRIES))
            response = await api.request("get", POOLS, settings=settings, logger=logger, context=context)
            assert response.status == 200
            response.release()

    first, second = delays[:OUTAGE_TRIES], delays[OUTAGE_TRIES:]
    assert first[:10] == [1, 1, 2, 3, 5, 8, 13, 21, 30, 30]
    assert set(first[8:]) == {30}
    assert second == first
