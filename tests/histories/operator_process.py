"""The operator as a process of its own, without kopf: `python -m tests.histories.operator_process NAME KUBE_URL` and the usual environment.

Its calls carry its name as their token, so that an API server in a test knows who wrote. SIGTERM ends it in order.
"""

from __future__ import annotations

import asyncio
import signal
import sys

import uvloop

from aether_api.logs import configure_logging
from aether_kube.connection import KubeConnection
from aether_nats.connection import NatsConnection
from aether_nats.settings import NatsSettings
from aether_operator.handlers.candidate import Candidate
from aether_operator.settings import read_settings


async def run(name: str, kube_url: str) -> None:
    """Run until SIGTERM."""

    async def authorize(renew: bool) -> str:
        return f"Bearer {name}"

    settings = read_settings()
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    connection = await NatsConnection.open(NatsSettings(servers=settings.nats_servers, name=name))
    try:
        await Candidate(settings, KubeConnection(kube_url, authorize), connection).run()
    finally:
        await connection.close()


if __name__ == "__main__":
    configure_logging(level="INFO", as_json=True)
    try:
        uvloop.run(run(*sys.argv[1:3]))
    except asyncio.CancelledError:
        sys.exit(0)
