"""Starts everything under one supervisor and ends it at a signal; what dies of the candidate takes the process along, because nothing here can do
without it.

Two halves run side by side. *kopf* is the shell (see `shell`), whose end harms nothing. *The candidate* is ours: informers, heartbeats,
election, and while this process leads planner and writers; it gives the lease back at its end. Probes are answered while NATS is still away.
"""

from __future__ import annotations

import asyncio
import logging
import signal

from aether_api import logs
from aether_api.errors import Disconnected
from aether_kube.connection import KubeConnection, open_connection
from aether_nats.connection import NatsConnection
from aether_nats.settings import NatsSettings
from aether_operator.handlers.candidate import Candidate
from aether_operator.handlers.health import serving_health
from aether_operator.handlers.shell import Hooks, keep_kopf
from aether_operator.settings import OperatorSettings

logger = logging.getLogger(__name__)


class Stopped(Exception):
    """Ends the supervisor in order: somebody asked the process to stop."""


async def run_operator(settings: OperatorSettings) -> None:
    """Run the operator until SIGTERM, SIGINT or cancellation.

    Raises:
        SettingsInvalid: there is no usable configuration of Kubernetes or NATS.
        ExceptionGroup: a part died; the operator cannot do without it.
    """
    stop, hooks = asyncio.Event(), Hooks()

    def find_sickness() -> list[str]:
        return hooks.find_sickness()  # which is another one later

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, _on_signal, loop, number, stop)
    kube = await open_connection()
    try:
        async with serving_health(settings.health_port, find_sickness), asyncio.TaskGroup() as parts:
            parts.create_task(_raise_at(stop), name="stop")
            parts.create_task(_run_candidate(settings, kube, hooks), name="candidate")
            parts.create_task(keep_kopf(settings, hooks), name="kopf")
    except* Stopped:
        logger.info("the operator has stopped")


def _on_signal(loop: asyncio.AbstractEventLoop, number: int, stop: asyncio.Event) -> None:
    """Stop in order; the next signal of this kind has its usual, immediate effect."""
    stop.set()
    loop.remove_signal_handler(number)


async def _raise_at(stop: asyncio.Event) -> None:
    await stop.wait()
    raise Stopped


async def _run_candidate(settings: OperatorSettings, kube: KubeConnection, hooks: Hooks) -> None:
    connection = await _connect(settings)
    try:
        candidate = Candidate(settings, kube, connection)
        hooks.check_model, hooks.check_pool, hooks.find_sickness = candidate.check_model, candidate.check_pool, candidate.find_sickness
        logger.info("the operator is up", extra={logs.URL: kube.url, logs.NAMESPACE: ", ".join(settings.watch_namespaces) or "all"})
        await candidate.run()
    finally:
        await connection.close()


async def _connect(settings: OperatorSettings) -> NatsConnection:
    """Connect to NATS, however long it takes: it may start after us, and a restart of ours would not bring it."""
    while True:
        try:
            return await NatsConnection.open(NatsSettings(servers=settings.nats_servers, name="aether-operator", credentials_path=settings.nats_credentials))
        except Disconnected as exc:
            logger.warning("NATS cannot be reached yet", extra={logs.REASON: str(exc)})
