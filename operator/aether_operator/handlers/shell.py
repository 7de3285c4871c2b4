"""Keeps kopf, the shell: login, and the watches of ActorModel and ActorPool, whose events only say "look at this one again".

kopf takes a watch that the API server ends with an error (500 while etcd elects a leader, for one) or a refused login for its own end, in all
replicas at once, and sometimes hangs in that end. Nothing that moves actors depends on it, so it has a thread and a loop to itself, in
which it ends every task it finds. When it has ended it starts again there; a thread that does not end is left behind.

kopf writes nothing to our objects: no finalizers, no annotations, no Events.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

import kopf

from aether_api import logs
from aether_api.v1alpha1.meta import GROUP, VERSION
from aether_kube.store import ObjectKey
from aether_operator.settings import OperatorSettings

logger = logging.getLogger(__name__)

RESTART_FIRST_S: Final = 2.0
RESTART_MAX_S: Final = 60.0
"""Seconds until kopf starts again, doubling up to a bound: it lists everything each time."""

STEADY_S: Final = 120.0
"""Seconds after which kopf's start counts as a success."""

END_TIMEOUT_S: Final = 10.0
"""Seconds between kopf's end, or our wish for it, and that of its thread: it waits five for tasks that it left. The pod has 30."""

LEFT_TIMEOUT_S: Final = 1.0
"""Seconds for tasks that kopf did not end."""

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
    """What kopf and the probe know of the rest, called in the loop of the rest; it does nothing until the candidate stands."""

    check_model: Callable[[ObjectKey], None] = lambda _: None
    check_pool: Callable[[ObjectKey], None] = lambda _: None
    find_sickness: Callable[[], list[str]] = list[str]


async def keep_kopf(settings: OperatorSettings, hooks: Hooks) -> None:
    """Run kopf until cancelled, however often it ends."""
    delay_s = RESTART_FIRST_S
    while True:
        began_s = time.monotonic()
        reason = await _KopfThread(settings, hooks).run()
        if time.monotonic() - began_s > STEADY_S:
            delay_s = RESTART_FIRST_S
        logger.warning("kopf ended and is started again", extra={logs.REASON: reason, logs.DURATION_S: delay_s})
        await asyncio.sleep(delay_s)
        delay_s = min(2 * delay_s, RESTART_MAX_S)


class _KopfThread:
    """One run of kopf, in a thread and a loop of its own."""

    def __init__(self, settings: OperatorSettings, hooks: Hooks) -> None:
        self._settings = settings
        self._ours = asyncio.get_running_loop()
        self._theirs = asyncio.new_event_loop()
        self._theirs.set_exception_handler(_note_left)
        self._registry = build_registry(hooks, self._ours, self._note_end)
        self._ending = asyncio.Event()
        self._stop = threading.Event()
        self._ended = Future[str]()
        self._ended.set_running_or_notify_cancel()  # so that giving up the wait for it leaves it as it is

    async def run(self) -> str:
        """Run kopf until it ends, and return why; when cancelled, end it."""
        threading.Thread(target=self._work, name="kopf", daemon=True).start()
        try:
            await self._ending.wait()
        finally:
            reason = await self._finish()
        return reason

    async def _finish(self) -> str:
        self._stop.set()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                return await asyncio.wrap_future(self._ended)
        except TimeoutError:
            self._theirs.call_soon_threadsafe(self._theirs.stop)
            return f"it does not end within {END_TIMEOUT_S:g} s and is left behind"

    def _work(self) -> None:
        """What the thread does; of what kopf leaves it waits for nothing long."""
        reason = "nobody told it to"
        try:
            self._theirs.run_until_complete(self._run_kopf())
        except BaseException as exc:  # noqa: BLE001  # whatever kopf and its libraries raise goes to who waits
            reason = repr(exc)
        finally:
            self._stop.set()  # a thread of the loop's executor waits for it
            self._end_tasks()
            self._theirs.close()
            self._ended.set_result(reason)
            self._note_end()

    def _end_tasks(self) -> None:
        left = asyncio.all_tasks(self._theirs)
        for task in left:
            task.cancel()
        if left:
            self._theirs.run_until_complete(asyncio.wait(left, timeout=LEFT_TIMEOUT_S))

    def _note_end(self) -> None:
        if not self._ours.is_closed():
            self._ours.call_soon_threadsafe(self._ending.set)

    async def _run_kopf(self) -> None:
        namespaces = self._settings.watch_namespaces
        scope: dict[str, Any] = {"namespaces": list(namespaces)} if namespaces else {"clusterwide": True}
        await kopf.operator(registry=self._registry, settings=build_kopf_settings(self._settings), standalone=True, stop_flag=self._stop, **scope)


def _note_left(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Take what tasks died of that nobody awaits: those are what kopf leaves behind at its end, which is told."""
    logger.debug("a task of kopf was left behind", extra={logs.REASON: f"{context.get('message')}: {context.get('exception')!r}"})


def build_kopf_settings(settings: OperatorSettings) -> kopf.OperatorSettings:
    """Return kopf's settings: it posts nothing, stores nothing, and looks only where we may."""
    chosen = kopf.OperatorSettings()
    chosen.posting.enabled = False
    chosen.peering.standalone = True
    chosen.process.ultimate_exiting_timeout = None  # it would kill the whole process
    chosen.scanning.disabled = bool(settings.watch_namespaces)
    chosen.networking.request_timeout = REQUEST_TIMEOUT_S
    chosen.networking.error_backoffs = EndlessBackoffs()
    # Unused as long as all handlers are on.event, and named all the same: a change of these later would run handlers again.
    chosen.persistence.finalizer = f"{GROUP}/kopf"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=GROUP)
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=GROUP)
    return chosen


def build_registry(hooks: Hooks, loop: asyncio.AbstractEventLoop, on_end: Callable[[], None]) -> kopf.OperatorRegistry:
    """Return kopf's handlers; all they do is pass on.

    Args:
        loop: where the hooks are called.
        on_end: called in kopf's thread when it is about to end.
    """
    registry = kopf.OperatorRegistry()

    def login(**arguments: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_with_service_account(**arguments) or kopf.login_via_client(**arguments)

    async def on_model(name: str, namespace: str | None, **_: Any) -> None:
        loop.call_soon_threadsafe(hooks.check_model, ObjectKey(namespace or "", name))

    async def on_pool(name: str, namespace: str | None, **_: Any) -> None:
        loop.call_soon_threadsafe(hooks.check_pool, ObjectKey(namespace or "", name))

    async def on_cleanup(**_: Any) -> None:
        on_end()

    kopf.on.login(registry=registry)(login)
    kopf.on.event(GROUP, VERSION, "actormodels", registry=registry)(on_model)
    kopf.on.event(GROUP, VERSION, "actorpools", registry=registry)(on_pool)
    kopf.on.cleanup(registry=registry)(on_cleanup)
    return registry
