"""Asks pods what they hold: at the beginning of a term, and each process that is met later.

The first plan of a term waits for the answers (bounded), since it would else move actors back that the leader before had just
moved. A process is introduced only after it was asked. One that does not answer, or is of a version that knows no such question, is
taken to hold what its placements say; its log fences what is wrong.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from typing import Final

from aether_api import logs
from aether_api.control import HeldPage, HeldQuestion, decode_held_page, encode
from aether_api.errors import UNANSWERED, Backpressure, Disconnected, InternalError, NoResponders, RequestTimeout
from aether_api.identity import BootId, Epoch, PodUid
from aether_api.subjects import held_subject
from aether_kube.leader import Leadership
from aether_kube.store import ObjectKey
from aether_nats.connection import NatsConnection
from aether_operator.cluster.observe import Memory, Observer
from aether_operator.planning.claims import Claim, is_ahead
from aether_operator.planning.snapshot import PodView

logger = logging.getLogger(__name__)

ANSWER_TIMEOUT_S: Final = 0.5
"""Seconds for one page: a pod reads a table; what takes longer is a pod in trouble."""

TRIES_MAX: Final = 2
"""Tries of one page: one may get lost with a link that breaks."""

HEARD_TIMEOUT_S: Final = 1.0
"""Seconds in which a ready pod must be heard to be asked before the first plan: three heartbeats. A standby has heard all of them."""

ROUND_TIMEOUT_S: Final = 3.0
"""Seconds for all answers before the first plan: ten pages of each of a hundred pods take less, and callers wait."""

PAGES_MAX: Final = 1_000
"""Pages of one pod: a million actors, more than any pod may hold."""


class Survey:
    """What pods say that they hold, for one term of leadership."""

    def __init__(self, connection: NatsConnection, leadership: Leadership, memory: Memory, observer: Observer, replan: Callable[[], None]) -> None:
        """Make a survey; `run` gives its questions a home.

        Args:
            replan: asked for when a process has answered.
        """
        self._connection = connection
        self._leadership = leadership
        self._memory = memory
        self._observer = observer
        self._replan = replan
        self._asked: dict[PodUid, BootId] = {}
        self._moved = asyncio.Event()
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Own all questions until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            self._tasks = tasks
            await asyncio.Event().wait()

    def wake(self) -> None:
        """Look whether pods that were waited for are heard."""
        self._moved.set()

    def look(self, pods: Iterable[PodView]) -> None:
        """Ask every process that was not asked yet."""
        if self._tasks is None:
            raise InternalError("pods are asked before the survey runs")
        for pod in pods:
            if pod.hears and self._memory.surveyed.get(pod.uid) != pod.boot_id and self._asked.get(pod.uid) != pod.boot_id:
                self._asked[pod.uid] = pod.boot_id
                self._tasks.create_task(self._ask(pod), name=f"what {pod.name} holds")

    async def ask_all(self) -> None:
        """Ask all pods that are there, and wait for their answers; who does not answer in time is not waited for."""
        await self._wait(HEARD_TIMEOUT_S, lambda: not any(pod.ready and pod.verdict == "starting" for pod in self._observer.view_pods()))
        self.look(self._observer.view_pods())
        await self._wait(ROUND_TIMEOUT_S, lambda: not self._asked)

    async def _wait(self, timeout_s: float, condition: Callable[[], bool]) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._moved.clear()
                    await self._moved.wait()
        except TimeoutError:
            logger.warning("not every pod tells what it holds; the plan is made without those", extra={logs.DURATION_S: timeout_s})

    async def _ask(self, pod: PodView) -> None:
        try:
            await self._read_pages(pod)
        except UNANSWERED as exc:
            level = logging.DEBUG if isinstance(exc, NoResponders) else logging.WARNING
            logger.log(level, "a pod does not tell what it holds", extra={logs.POD: pod.name, logs.REASON: str(exc)})
        self._memory.surveyed[pod.uid] = pod.boot_id
        if self._asked.get(pod.uid) == pod.boot_id:
            del self._asked[pod.uid]
        self._moved.set()
        self._replan()

    async def _read_pages(self, pod: PodView) -> None:
        after = ""
        for _ in range(PAGES_MAX):
            page = await self._read_page(pod, after)
            self._leadership.note_term(page.term)
            if page.boot_id != pod.boot_id:
                return
            self._take(pod, page)
            if not page.more or not page.actors:
                return
            after = page.actors[-1].name

    async def _read_page(self, pod: PodView, after: str) -> HeldPage:
        question = encode(HeldQuestion(after))
        subject = held_subject(pod.namespace, pod.uid)
        for tries_left in reversed(range(TRIES_MAX)):
            try:
                return decode_held_page((await self._connection.request(subject, question, timeout_s=ANSWER_TIMEOUT_S)).payload)
            except (RequestTimeout, Disconnected, Backpressure):
                if not tries_left:
                    raise
        raise InternalError("a loop with a last turn went on")

    def _take(self, pod: PodView, page: HeldPage) -> None:
        for held in page.actors:
            key = ObjectKey(pod.namespace, held.name)
            claim = Claim(held.uid, pod.uid, pod.boot_id, Epoch(held.epoch))
            known, actor = self._memory.claims.get(key), self._observer.actors.get(key)
            if (known is None or known.epoch < claim.epoch) and (actor is None or is_ahead(claim, actor)):
                self._memory.claims[key] = claim
