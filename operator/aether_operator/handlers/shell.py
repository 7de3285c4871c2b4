"""Keeps kopf, the shell: login, probes, and the watches of ActorModel and ActorPool, whose events only say "look at this one again".

kopf takes a watch that the API server ends with an error (500 while etcd elects a leader, for one) for its own end, in all replicas at once.
Nothing that moves actors depends on it, so it has a thread and a loop to itself, in which it ends every task it finds, and starts again there.
Should it never stand again, the probe has no answer and the kubelet takes over.

kopf writes nothing to our objects: no finalizers, no annotations, no Events.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import kopf

from aether_api import logs
from aether_api.errors import InternalError
from aether_api.v1alpha1.meta import GROUP, VERSION
from aether_kube.store import ObjectKey
from aether_operator.settings import OperatorSettings

logger = logging.getLogger(__name__)

RESTART_S: Final = 2.0
"""Seconds until kopf starts again; its own end takes five more, in which it waits for tasks that it left."""

STOP_TIMEOUT_S: Final = 8.0
"""Seconds for kopf to stop, of the 30 that the pod has; its thread does not hold up the process longer."""

ANSWER_TIMEOUT_S: Final = 3.0
"""Seconds for the loop of the rest to say how it is, of the 5 that the kubelet waits: one that stands still is sick."""

REQUEST_TIMEOUT_S: Final = 30.0
"""Seconds for kopf's own calls: its default of five minutes would hide a dead API server from the log."""

BACKOFFS_S: Final = (1.0, 1.0, 2.0, 3.0, 5.0, 8.0, 13.0, 21.0, 30.0)
"""Seconds between kopf's tries of one call: its default, and then the last one for ever. Half a minute is how late a change of a pool may be
seen once the API server is back."""


class EndlessBackoffs:
    """Delays in seconds between the tries of a call; kopf iterates over them anew for each.

    Where they end it gives the call up, and for an answer of 5xx or 403 all of its work.
    """

    def __iter__(self) -> Iterator[float]:
        """Iterate over the delays of one call, without an end."""
        return itertools.chain(BACKOFFS_S, itertools.repeat(BACKOFFS_S[-1]))


@dataclass(slots=True)
class Hooks:
    """What kopf knows of the rest, all called in the loop of the rest; it does nothing until the candidate stands."""

    check_model: Callable[[ObjectKey], None] = lambda _: None
    check_pool: Callable[[ObjectKey], None] = lambda _: None
    find_sickness: Callable[[], list[str]] = list[str]


async def keep_kopf(settings: OperatorSettings, hooks: Hooks) -> None:
    """Run kopf until cancelled, however often it ends."""
    while True:
        try:
            await _run_in_thread(settings, hooks)
        except Exception as exc:  # noqa: BLE001  # whatever kopf and its libraries raise
            logger.warning("kopf ended and is started again", extra={logs.REASON: repr(exc)})
        await asyncio.sleep(RESTART_S)


async def _run_in_thread(settings: OperatorSettings, hooks: Hooks) -> None:
    """Run kopf until it ends, and end it when cancelled."""
    stop, ended = threading.Event(), Future[None]()
    registry = build_registry(hooks, asyncio.get_running_loop())

    def work() -> None:
        try:
            asyncio.run(_run_kopf(settings, registry, stop))
        except BaseException as exc:  # noqa: BLE001  # goes to who waits
            ended.set_exception(exc)
        else:
            ended.set_exception(InternalError("kopf ended though nobody told it to"))

    ended.set_running_or_notify_cancel()
    threading.Thread(target=work, name="kopf", daemon=True).start()
    try:
        await asyncio.wrap_future(ended)
    finally:
        stop.set()
        with suppress(Exception):
            async with asyncio.timeout(STOP_TIMEOUT_S):
                await asyncio.wrap_future(ended)


async def _run_kopf(settings: OperatorSettings, registry: kopf.OperatorRegistry, stop: threading.Event) -> None:
    scope: dict[str, Any] = {"namespaces": list(settings.watch_namespaces)} if settings.watch_namespaces else {"clusterwide": True}
    try:
        await kopf.operator(
            registry=registry,
            settings=build_kopf_settings(settings),
            standalone=True,
            liveness_endpoint=f"http://0.0.0.0:{settings.health_port}/healthz" if settings.health_port else None,
            stop_flag=stop,
            **scope,
        )
    finally:
        stop.set()  # a thread of the loop's executor waits for it


def build_kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    """Return kopf's settings: it posts nothing, stores nothing, and looks only where we may."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.scanning.disabled = bool(settings.watch_namespaces)
    chosen.networking.request_timeout = REQUEST_TIMEOUT_S
    chosen.networking.error_backoffs = EndlessBackoffs()
    # Unused as long as all handlers are on.event, and named all the same: a change of these later would run handlers again.
    chosen.persistence.finalizer = f"{GROUP}/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    return chosen


def build_registry(hooks: Hooks, loop: asyncio.AbstractEventLoop) -> kopf.OperatorRegistry:
    """Return kopf's handlers; all they do is pass on.

    Args:
        loop: where the hooks are called.
    """
    registry = kopf.OperatorRegistry()

    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_via_client(**arguments)

    async def on_model(name: str, namespace: str | None, **_: Any) -> None:
        loop.call_soon_threadsafe(hooks.check_model, ObjectKey(namespace or "", name))

    async def on_pool(name: str, namespace: str | None, **_: Any) -> None:
        loop.call_soon_threadsafe(hooks.check_pool, ObjectKey(namespace or "", name))

    async def on_probe(**_: Any) -> str:
        answer = Future[list[str]]()
        loop.call_soon_threadsafe(lambda: answer.set_result(hooks.find_sickness()))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                sickness = await asyncio.wrap_future(answer)
        except TimeoutError:
            sickness = [f"the operator's loop did not answer within {ANSWER_TIMEOUT_S:g} s"]
        if sickness:
            raise kopf.PermanentError("; ".join(sickness))
        return "well"

    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, "actormodels", registry=registry)(on_model)
    kopf.on.event(GROUP, VERSION, "actorpools", registry=registry)(on_pool)
    kopf.on.probe(registry=registry, id="control-plane")(on_probe)
    return registry
