"""Actors from a folder of manifests: the runtime without Kubernetes.

The same YAML that `kubectl apply` takes. The folder is read again when a file changes; an actor that vanishes from it is
released, one whose manifest is wrong now stays as it was, and so do all while the folder itself is away. Each process takes its start time as epoch, so a restarted runtime outranks the one before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from aether_api import logs
from aether_api.errors import SettingsInvalid
from aether_api.identity import ActorId, Epoch, PodUid
from aether_api.v1alpha1 import Actor, ActorModel
from aether_runtime.adapters.manifests import ManifestFolder, list_manifests
from aether_runtime.ports import ActorReport, DesiredActor, DesiredListener, Home

logger = logging.getLogger(__name__)

POLL_S: Final = 0.5
"""Seconds between looks at the folder: an edit shows at once to a person, and idle costs nothing."""


def check_folder(folder: Path) -> Path:
    """Return a folder, or raise `SettingsInvalid` for what is none."""
    if not folder.is_dir():
        raise SettingsInvalid(f"AETHER_FOLDER or --folder: {folder} is not a folder of manifests")
    return folder


class FolderSource:
    """Reads models and actors from a folder; this process holds all of them."""

    def __init__(self, folder: Path, namespace: str, pod_uid: PodUid) -> None:
        self._folder = check_folder(folder)
        self._manifests = ManifestFolder(namespace)
        self._pod_uid = pod_uid
        self._epoch = Epoch(int(time.time() * 1000))
        self._models: dict[str, ActorModel] = {}
        self._actors: dict[ActorId, DesiredActor] = {}
        self._suspended: set[ActorId] = set()
        self._is_away = False

    async def run(self, listener: DesiredListener) -> None:
        """Tell of everything in the folder and of every change, until cancelled."""
        seen: Mapping[Path, tuple[int, int]] | None = None
        while True:
            stamps = self._look()
            if stamps is not None and stamps != seen:
                seen = stamps
                self._take(listener, *self._manifests.read(stamps))
                listener.on_synced()
            await asyncio.sleep(POLL_S)

    async def find(self, actor: ActorId) -> Home | None:
        """Return this process as the home of every actor of the folder."""
        if actor in self._suspended:
            return Home(PodUid(""), DesiredActor(actor), suspended=True)
        desired = self._actors.get(actor)
        return None if desired is None else Home(self._pod_uid, desired)

    def _look(self) -> Mapping[Path, tuple[int, int]] | None:
        """Return the stamps of all manifests; None while the folder cannot be read, which is told when it begins and when it ends."""
        try:
            stamps = _read_stamps(self._folder)
        except OSError as exc:
            if not self._is_away:
                logger.error("the folder of manifests cannot be read; all that it held stays", extra={logs.NAME: str(self._folder), logs.REASON: str(exc)})
            self._is_away = True
            return None
        if self._is_away:
            logger.info("the folder of manifests can be read again", extra={logs.NAME: str(self._folder)})
        self._is_away = False
        return stamps

    def _take(self, listener: DesiredListener, models: list[ActorModel], actors: list[Actor]) -> None:
        known, self._models = self._models, {model.metadata.name: model for model in models}
        for name in known.keys() - self._models.keys():
            listener.on_model_gone(name)
        for name, model in self._models.items():
            if known.get(name) != model:
                listener.on_model(model)
        self._suspended = {actor.identity for actor in actors if actor.spec.suspend}
        before, self._actors = self._actors, {actor.identity: self._build(actor) for actor in actors if not actor.spec.suspend}
        for gone in before.keys() - self._actors.keys():
            listener.on_release(gone, self._epoch)
        for desired in self._actors.values():
            listener.on_adopt(desired)

    def _build(self, actor: Actor) -> DesiredActor:
        snapshot, passivation = actor.spec.snapshot, actor.spec.passivation
        return DesiredActor(actor.identity, actor.metadata.name, "", self._epoch, 0, snapshot.every, snapshot.recovery_target_s, passivation.idle_after_s)


class LatestReports:
    """Keeps the newest report of each actor that is held here, for a table."""

    def __init__(self) -> None:
        self.reports: dict[ActorId, ActorReport] = {}

    async def write(self, report: ActorReport) -> int:
        """Keep a report."""
        self.reports[report.desired.actor] = report
        return 0

    def say(self, report: ActorReport) -> None:
        """Do nothing: nobody writes it sooner."""

    def forget(self, actor: ActorId) -> None:
        """Drop it."""
        self.reports.pop(actor, None)


def _read_stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return time and size of each manifest; a file that vanishes meanwhile is not there.

    Raises:
        OSError: the folder cannot be read.
    """
    stamps: dict[Path, tuple[int, int]] = {}
    for path in list_manifests(folder):
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        except OSError:  # such as a link to itself: reading it tells what is wrong
            stamps[path] = (0, 0)
        else:
            stamps[path] = (found.st_mtime_ns, found.st_size)
    return stamps
