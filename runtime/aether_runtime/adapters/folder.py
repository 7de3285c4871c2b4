"""Actors from a folder of manifests: the runtime without Kubernetes.

The same YAML that `kubectl apply` takes. The folder is read again when a file changes; an actor that vanishes from it is
released. Each process takes its start time as epoch, so a restarted runtime outranks the one before it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, cast

import yaml
from pydantic import ValidationError

from aether_api import logs
from aether_api.errors import InvalidName, SettingsInvalid
from aether_api.identity import ActorId, Epoch, PodUid, check_name
from aether_api.v1alpha1 import Actor, ActorModel
from aether_api.v1alpha1.meta import API_VERSION
from aether_runtime.ports import ActorReport, DesiredActor, DesiredListener, Home

logger = logging.getLogger(__name__)

POLL_S: Final = 0.5
"""Seconds between looks at the folder: an edit shows at once to a person, and idle costs nothing."""


class FolderSource:
    """Reads models and actors from a folder; this process holds all of them."""

    def __init__(self, folder: Path, namespace: str, pod_uid: PodUid) -> None:
        if not folder.is_dir():
            raise SettingsInvalid(f"{folder} is not a folder of manifests")
        self._folder = folder
        self._namespace = namespace
        self._pod_uid = pod_uid
        self._epoch = Epoch(int(time.time() * 1000))
        self._models: dict[str, ActorModel] = {}
        self._actors: dict[ActorId, DesiredActor] = {}
        self._suspended: set[ActorId] = set()

    async def run(self, listener: DesiredListener) -> None:
        """Tell of everything in the folder and of every change, until cancelled."""
        seen: Mapping[Path, tuple[int, int]] | None = None
        while True:
            stamps = _read_stamps(self._folder)
            if stamps != seen:
                seen = stamps
                self._take(listener, *read_manifests(self._folder, self._namespace))
                listener.on_synced()
            await asyncio.sleep(POLL_S)

    async def find(self, actor: ActorId) -> Home | None:
        """Return this process as the home of every actor of the folder."""
        if actor in self._suspended:
            return Home(PodUid(""), DesiredActor(actor), suspended=True)
        desired = self._actors.get(actor)
        return None if desired is None else Home(self._pod_uid, desired)

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
    """Keeps the newest report of each actor, for a table."""

    def __init__(self) -> None:
        self.reports: dict[ActorId, ActorReport] = {}

    async def write(self, report: ActorReport) -> int:
        """Keep a report."""
        self.reports[report.desired.actor] = report
        return 0


def read_manifests(folder: Path, namespace: str) -> tuple[list[ActorModel], list[Actor]]:
    """Read all models and actors of a namespace; what cannot be read is logged with its file and field, and left out."""
    models: list[ActorModel] = []
    actors: list[Actor] = []
    for path in sorted(folder.glob("*.y*ml")):
        for document in _read_documents(path):
            parsed = _parse(path, document, namespace)
            if isinstance(parsed, ActorModel):
                models.append(parsed)
            elif parsed is not None:
                actors.append(parsed)
    return models, actors


def _read_stamps(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return time and size of each manifest; a file that vanishes meanwhile is not there."""
    stamps: dict[Path, tuple[int, int]] = {}
    for path in sorted(folder.glob("*.y*ml")):
        with suppress(FileNotFoundError):
            found = path.stat()
            stamps[path] = (found.st_mtime_ns, found.st_size)
    return stamps


def _read_documents(path: Path) -> list[dict[str, Any]]:
    try:
        documents: list[Any] = list(yaml.safe_load_all(path.read_text()))
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as exc:
        logger.error("a manifest cannot be read", extra={logs.NAME: path.name, logs.REASON: str(exc)})
        return []
    found = [cast("dict[str, Any]", document) for document in documents if isinstance(document, dict)]
    return [document for document in found if document.get("apiVersion") == API_VERSION]


def _parse(path: Path, document: dict[str, Any], namespace: str) -> ActorModel | Actor | None:
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        document = {**document, "metadata": {"namespace": namespace, **metadata}}
    try:
        parsed = _read_kind(document)
        return parsed if parsed is not None and parsed.metadata.namespace == namespace else None
    except (ValidationError, InvalidName) as exc:
        logger.error("a manifest is not valid and is ignored", extra={logs.NAME: path.name, logs.REASON: describe_invalid(exc)})
        return None


def _read_kind(document: dict[str, Any]) -> ActorModel | Actor | None:
    """Read a document of a kind that a runtime holds, its names included."""
    if document.get("kind") == "ActorModel":
        model = ActorModel.model_validate(document)
        check_name("metadata.name", model.metadata.name)
        return model
    if document.get("kind") == "Actor":
        actor = Actor.model_validate(document)
        return actor if actor.identity else None
    return None


def describe_invalid(error: ValidationError | InvalidName) -> str:
    """Return what is wrong on one line, each problem with the path of its field."""
    if isinstance(error, InvalidName):
        return str(error)
    return "; ".join(f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}" for problem in error.errors())
