"""Looks for pods that fell silent and asks them directly; tells when the verdict on any pod changes.

A missing answer is a witness only if our own link carried something meanwhile: either the server itself said that nobody
listens, or a round trip to it succeeded after the answer stayed out. So a half-open link of ours condemns nobody. A stall of our
own event loop (`wakefulness`) counts as a link that was down.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from aether_api import logs
from aether_api.control import decode_heartbeat
from aether_api.errors import Backpressure, Disconnected, InvalidEnvelope, NoResponders, PermissionDenied, RequestTimeout
from aether_api.identity import PodUid
from aether_api.subjects import ping_subject
from aether_nats.connection import NatsConnection
from aether_operator.cluster.heartbeats import Heartbeats
from aether_operator.planning.snapshot import Verdict

logger = logging.getLogger(__name__)

TICK_S: Final = 0.1
"""Seconds between looks: a tenth of the time after which a pod is suspected."""

PING_AGAIN_S: Final = 1.0
"""Seconds between pings of one silent pod; its heartbeats would tell as well."""


@dataclass(frozen=True, slots=True)
class Suspect:
    """A pod to be asked."""

    namespace: str
    uid: PodUid


class PodJudge(Protocol):
    """Whoever knows all pods: the observer."""

    def find_silent(self) -> list[Suspect]:
        """Return the pods that should have been heard by now."""
        ...

    def verdicts(self) -> Mapping[PodUid, Verdict]:
        """Return the verdicts on all pods at this moment."""
        ...

    def is_settled(self) -> bool:
        """Return whether our own links were up for a full window."""
        ...

    def name_of(self, uid: PodUid) -> str:
        """Return a pod's name, for people."""
        ...


class Detector:
    """The loop that looks and asks."""

    def __init__(self, connection: NatsConnection, heartbeats: Heartbeats, pods: PodJudge, *, on_change: Callable[[], None], ping_timeout_s: float) -> None:
        """Make a detector; `run` looks.

        Args:
            on_change: told when a verdict changed.
        """
        self._connection = connection
        self._heartbeats = heartbeats
        self._pods = pods
        self._on_change = on_change
        self._ping_timeout_s = ping_timeout_s
        self._pinged_s: dict[PodUid, float] = {}
        self._verdicts: Mapping[PodUid, Verdict] = {}
        self._left: set[PodUid] = set()
        self._settled = False

    async def run(self) -> None:
        """Look until cancelled."""
        async with asyncio.TaskGroup() as pings:
            while True:
                for suspect in self._find_due(time.monotonic()):
                    pings.create_task(self._ping(suspect), name=f"ping of pod {suspect.uid}")
                self._compare()
                await asyncio.sleep(TICK_S)

    def _find_due(self, now_s: float) -> list[Suspect]:
        suspects = self._pods.find_silent()
        silent = {suspect.uid for suspect in suspects}
        self._pinged_s = {uid: pinged_s for uid, pinged_s in self._pinged_s.items() if uid in silent}
        due = [suspect for suspect in suspects if now_s - self._pinged_s.get(suspect.uid, float("-inf")) >= PING_AGAIN_S]
        self._pinged_s.update({suspect.uid: now_s for suspect in due})
        return due

    async def _ping(self, suspect: Suspect) -> None:
        asked_s = time.monotonic()
        try:
            answer = await self._connection.request(ping_subject(suspect.namespace, suspect.uid), b"", timeout_s=self._ping_timeout_s)
            self._heartbeats.take(decode_heartbeat(answer.payload))
        except NoResponders:
            self._condemn(suspect, asked_s)
        except (RequestTimeout, PermissionDenied):
            if await self._link_works():
                self._condemn(suspect, asked_s)
        except (Disconnected, Backpressure, InvalidEnvelope) as exc:
            logger.debug("a ping says nothing", extra={logs.POD_UID: suspect.uid, logs.REASON: str(exc)})

    async def _link_works(self) -> bool:
        try:
            await self._connection.flush(self._ping_timeout_s)
        except (RequestTimeout, PermissionDenied, Disconnected, Backpressure):
            return False
        return True

    def _condemn(self, suspect: Suspect, asked_s: float) -> None:
        self._heartbeats.note_failed_ping(suspect.uid, asked_s)
        self._compare()

    def _compare(self) -> None:
        """Tell if anything is judged in another way than before; that our links settled counts, since the gone are judged by it."""
        verdicts, settled = self._pods.verdicts(), self._pods.is_settled()
        if verdicts == self._verdicts and settled == self._settled:
            return
        for uid, verdict in verdicts.items():
            self._log(uid, self._verdicts.get(uid), verdict)
        self._left = {uid for uid, verdict in verdicts.items() if verdict == "leaving" or (uid in self._left and verdict != "alive")}
        self._verdicts, self._settled = verdicts, settled
        self._on_change()

    def _log(self, uid: PodUid, before: Verdict | None, verdict: Verdict) -> None:
        if before == verdict:
            return
        # A pod that was never heard, or that said good-bye, has nothing to lose: that it does not answer is no news.
        unheard = before in (None, "starting") and verdict not in ("alive", "leaving")
        quiet = unheard or uid in self._left
        level = logging.DEBUG if quiet else logging.WARNING if verdict in ("suspect", "dead") else logging.INFO
        logger.log(level, "the verdict on a pod changed", extra={logs.POD: self._pods.name_of(uid), logs.POD_UID: uid, logs.REASON: f"{before or 'new'} -> {verdict}"})
