"""Starts everything under one supervisor and ends it: what dies takes the process along, because nothing here can do without it.

Two halves run side by side. *kopf* is the shell: signals, login, probes, and the watches of ActorModel and ActorPool, whose
events only say "look at this one again". *The candidate* is ours: informers, heartbeats, election, and while this process leads
planner and writers. kopf stands first, so that probes are answered while NATS is still away; at the end its cleanup waits for the
candidate to stop, which gives the lease back.

kopf writes nothing to our objects: no finalizers, no annotations, no Events.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import kopf

from aether_api import logs
from aether_api.errors import Disconnected
from aether_api.v1alpha1.meta import GROUP, VERSION
from aether_kube.connection import KubeConnection, open_connection
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_nats.settings import NatsSettings
from aether_operator.handlers.candidate import Candidate
from aether_operator.settings import OperatorSettings

logger = logging.getLogger(__name__)

STOP_TIMEOUT_S: Final = 5.0
"""Seconds for the candidate to stop: it only cancels, and gives the lease back within 2; the pod's grace period is 30."""

KOPF_REQUEST_TIMEOUT_S: Final = 30.0
"""Seconds for kopf's own calls: its default of five minutes would hide a dead API server from the log."""

KOPF_BACKOFFS_S: Final = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 30.0)
"""Seconds between kopf's tries of one call: its default, and then the last one for ever. Half a minute is how late a change of a pool may be
seen once the API server is back."""


class EndlessBackoffs:
    """Delays in seconds between the tries of a call; kopf iterates over them anew for each.

    Where they end it gives the call up, and for an answer of 5xx or 403 the whole operator: an API server that is ill for a minute would end
    all replicas at once.
    """

    def __iter__(self) -> Iterator[float]:
        """Iterate over the delays of one call, without an end."""
        return itertools.chain(KOPF_BACKOFFS_S, itertools.repeat(KOPF_BACKOFFS_S[-1]))


class Stopped(Exception):
    """Ends the supervisor in order: somebody asked the process to stop."""


@dataclass(slots=True)
class Hooks:
    """What kopf's half knows of ours; it does nothing until the candidate stands."""

    check_model: Callable[[ObjectKey], None] = lambda _: None
    check_pool: Callable[[ObjectKey], None] = lambda _: None
    find_sickness: Callable[[], list[str]] = list[str]
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    stopped: asyncio.Event = field(default_factory=asyncio.Event)


async def run_operator(settings: OperatorSettings) -> None:
    """Run the operator until SIGTERM, SIGINT or cancellation.

    Raises:
        SettingsInvalid: there is no usable configuration of Kubernetes or NATS.
        ExceptionGroup: a part died; the operator cannot do without it.
    """
    hooks = Hooks()
    kube = await open_connection()
    try:
        async with asyncio.TaskGroup() as halves:
            halves.create_task(_run_candidate(settings, kube, hooks), name="candidate")
            halves.create_task(_run_kopf(settings, hooks), name="kopf")
    except* Stopped:
        logger.info("the operator has stopped")


async def _run_kopf(settings: OperatorSettings, hooks: Hooks) -> None:
    scope: dict[str, Any] = {"namespaces": list(settings.watch_namespaces)} if settings.watch_namespaces else {"clusterwide": True}
    await kopf.operator(
        registry=build_registry(hooks),
        settings=build_kopf_settings(settings),
        standalone=True,
        liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz" if settings.health_port else None,
        **scope,
    )
    raise Stopped


async def _run_candidate(settings: OperatorSettings, kube: KubeConnection, hooks: Hooks) -> None:
    connection: NatsConnection | None = None
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_raise_at(hooks.stop), name="stop")
            connection = await _connect(settings)
            candidate = Candidate(settings, kube, connection)
            hooks.check_model, hooks.check_pool, hooks.find_sickness = candidate.check_model, candidate.check_pool, candidate.find_sickness
            logger.info("the operator is up", extra={logs.URL: kube.url, logs.NAMESPACE: ", ".join(settings.watch_namespaces) or "all"})
            await candidate.run()
    except* Stopped:
        logger.debug("the candidate has stopped")
    finally:
        if connection is not None:
            await connection.close()
        hooks.stopped.set()


async def _raise_at(stop: asyncio.Event) -> None:
    await stop.wait()
    raise Stopped


async def _connect(settings: OperatorSettings) -> NatsConnection:
    """Connect to NATS, however long it takes: it may start after us, and a restart of ours would not bring it."""
    while True:
        try:
            return await NatsConnection.open(NatsSettings(servers=settings.nats_servers, name="aether-operator", credentials_path=settings.nats_credentials))
        except Disconnected as exc:
            logger.warning("NATS cannot be reached yet", extra={logs.REASON: str(exc)})


def build_kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    """Return kopf's settings: it posts nothing, stores nothing, and looks only where we may."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = bool(settings.watch_namespaces)
    chosen.networking.request_timeout = KOPF_REQUEST_TIMEOUT_S
    chosen.networking.error_backoffs = EndlessBackoffs()
    # Unused as long as all handlers are on.event, and named all the same: a change of these later would run handlers again.
    chosen.persistence.finalizer = f"{GROUP}/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    return chosen


def build_registry(hooks: Hooks) -> kopf.OperatorRegistry:
    """Return kopf's handlers; all they do is pass on."""
    registry = kopf.OperatorRegistry()

    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_via_client(**arguments)

    def on_model(name: str, namespace: str | None, **_: Any) -> None:
        hooks.check_model(ObjectKey(namespace or "", name))

    def on_pool(name: str, namespace: str | None, **_: Any) -> None:
        hooks.check_pool(ObjectKey(namespace or "", name))

    async def on_cleanup(**_: Any) -> None:
        hooks.stop.set()
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await hooks.stopped.wait()

    def on_probe(**_: Any) -> str:
        sickness = hooks.find_sickness()
        if sickness:
            raise kopf.PermanentError("; ".join(sickness))
        return "well"

    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, "actormodels", registry=registry)(_in_loop(on_model))
    kopf.on.event(GROUP, VERSION, "actorpools", registry=registry)(_in_loop(on_pool))
    kopf.on.cleanup(registry=registry)(on_cleanup)
    kopf.on.probe(registry=registry, id="control-plane")(on_probe)
    return registry


def _in_loop(handle: Callable[..., None]) -> Callable[..., Any]:
    """Return a handler that kopf calls in the loop instead of in a thread."""

    async def handler(**arguments: Any) -> None:
        handle(**arguments)

    return handler
