"""Keeps what pods say over NATS: when each process was last heard, which one it is, whether it leaves.

A heartbeat is a fact about a process, so it is kept by pod UID whether or not the Pod object is known yet; what belongs to no
Pod object for long is forgotten. Times are monotonic seconds. Callbacks come from the connection's read loop and only note.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final

from aether_api import logs
from aether_api.control import Heartbeat, decode_heartbeat
from aether_api.errors import InvalidEnvelope, InvalidName
from aether_api.identity import BootId, PodUid
from aether_api.subjects import heartbeat_wildcard, parse_heartbeat_subject
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.message import Message
from aether_operator.planning.damping import STEADY, Flaps, note_flap
from aether_operator.planning.liveness import Pulse, Sounds, Windows
from aether_operator.planning.snapshot import NO_BOOT

logger = logging.getLogger(__name__)

FORGET_AFTER_S: Final = 60.0
"""Seconds without a Pod object after which a process is forgotten: longer than any lag of the API server."""


@dataclass(frozen=True, slots=True)
class Process:
    """One pod's process as it is heard."""

    pulse: Pulse
    boot_id: BootId = NO_BOOT
    flaps: Flaps = STEADY


class Heartbeats:
    """The processes of all pods."""

    def __init__(self, windows: Windows, on_change: Callable[[], None], monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start with nobody heard.

        Args:
            windows: after which times silence means something.
            on_change: told when a process appears, changes its boot id or its state; not of each heartbeat.
        """
        self._windows = windows
        self._on_change = on_change
        self._monotonic = monotonic
        self._processes: dict[PodUid, Process] = {}
        self._sounds = Sounds()

    def subscribe(self, connection: NatsConnection, namespaces: Collection[str | None]) -> list[Subscription]:
        """Listen to the heartbeats of the namespaces, None meaning all of them."""
        return [connection.subscribe(heartbeat_wildcard(namespace), self._on_message) for namespace in namespaces]

    def see(self, uid: PodUid) -> Process:
        """Return what is known of a pod's process, and begin to expect it if it is new."""
        known = self._processes.get(uid)
        if known is None:
            now_s = self._monotonic()
            known = self._processes[uid] = Process(Pulse(seen_s=now_s, sounds_s=self._sounds.measure(now_s, self._windows)))
        return known

    def take(self, heartbeat: Heartbeat) -> None:
        """Note a heartbeat or the answer to a ping."""
        uid, boot_id = PodUid(heartbeat.pod_uid), BootId(heartbeat.boot_id)
        known = self.see(uid)
        first, given_up, now_s = known.pulse.heard_s is None, known.pulse.is_unanswered, self._monotonic()
        changed = first or given_up or known.boot_id != boot_id or known.pulse.state != heartbeat.state
        flapped = not first and (given_up or known.boot_id != boot_id)
        self._sounds = self._sounds.add(now_s, self._windows)
        flaps = note_flap(known.flaps, now_s) if flapped else known.flaps
        self._processes[uid] = Process(replace(known.pulse, heard_s=now_s, state=heartbeat.state, sounds_s=self._sounds.total_s), boot_id, flaps)
        if changed:
            self._on_change()

    def note_failed_ping(self, uid: PodUid, asked_s: float) -> None:
        """Note that a ping stayed without answer; one that was asked before the last sound says nothing, nor one while no pod is heard."""
        known, now_s = self._processes.get(uid), self._monotonic()
        if known is None or (known.pulse.heard_s is not None and known.pulse.heard_s >= asked_s):
            return
        if self._sounds.are_news_of(known.pulse, now_s=now_s, windows=self._windows):
            self._processes[uid] = replace(known, pulse=replace(known.pulse, ping_failed_s=now_s))

    def forget_others(self, existing: Collection[PodUid]) -> None:
        """Forget processes that have no Pod object and were not heard for long."""
        horizon_s = self._monotonic() - FORGET_AFTER_S
        for uid in [uid for uid, process in self._processes.items() if uid not in existing and process.pulse.silent_since_s < horizon_s]:
            del self._processes[uid]

    def _on_message(self, message: Message) -> None:
        try:
            _, _, uid = parse_heartbeat_subject(message.subject)
            heartbeat = decode_heartbeat(message.payload)
        except (InvalidEnvelope, InvalidName) as exc:
            logger.warning("a heartbeat cannot be read", extra={logs.REASON: str(exc)})
            return
        if heartbeat.pod_uid == uid:
            self.take(heartbeat)
