"""Reads a folder of manifests, again and again, and keeps to the last good word of each object.

A person who edits a file while the runtime serves makes typos. Kubernetes would refuse such an object and keep the one before, so does
this: what cannot be read is told with its file and field, and changes nothing. An object goes when its file goes, or when a file
that can be read does not hold it any more.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final, cast

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError

from aether_api import logs
from aether_api.errors import InvalidName
from aether_api.identity import check_name
from aether_api.v1alpha1 import Actor, ActorModel
from aether_api.v1alpha1.meta import API_VERSION
from aether_api.v1alpha1.words import describe_problem

logger = logging.getLogger(__name__)

Manifest = ActorModel | Actor
Name = tuple[str, str]
"""Kind and name of an object."""

PATTERN: Final = "*.y*ml"

SHOWN_MAX: Final = 40
"""Characters of a wrong value that its message shows."""

INTEGER_BITS_MAX: Final = 1024
"""Bits of an integer: more is beyond every number of JSON, and far beyond that Python refuses to print it in a message."""

TAG_PREFIX: Final = "tag:yaml.org,2002:"
"""What the names of YAML's own types begin with."""


class ManifestFolder:
    """The models and actors of one namespace in a folder."""

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._good: dict[Path, dict[Name, Manifest]] = {}

    def read(self, paths: Iterable[Path]) -> tuple[list[ActorModel], list[Actor]]:
        """Read all files of the folder; of what is wrong the last good version counts, if this process has seen one."""
        self._good = {path: self._read_file(path, self._good.get(path, {})) for path in sorted(paths)}
        found = [manifest for manifests in self._good.values() for manifest in manifests.values()]
        return [one for one in found if isinstance(one, ActorModel)], [one for one in found if isinstance(one, Actor)]

    def _read_file(self, path: Path, before: dict[Name, Manifest]) -> dict[Name, Manifest]:
        try:
            documents = list(_read_documents(path))
        except FileNotFoundError:
            return {}
        except (yaml.YAMLError, OSError, UnicodeDecodeError, RecursionError) as exc:
            logger.error("a manifest cannot be read; what it held before stays" if before else "a manifest cannot be read", extra={logs.NAME: path.name, logs.REASON: str(exc)})
            return before
        manifests: dict[Name, Manifest] = {}
        for document in documents:
            name = _name_of(document)
            try:
                parsed = _parse(document, self._namespace)
            except (ValidationError, InvalidName) as exc:
                parsed = before.get(name)
                message = "a manifest is not valid and is ignored" if parsed is None else "a manifest is not valid; the object stays as it was"
                logger.error(message, extra={logs.NAME: path.name, logs.REASON: describe_invalid(exc)})
            if parsed is not None:
                manifests[name] = parsed
        return manifests


def list_manifests(folder: Path) -> list[Path]:
    """Return the files of a folder that may hold manifests.

    Raises:
        OSError: the folder cannot be read now; `Path.glob` would call it empty.
    """
    return [path for path in folder.iterdir() if fnmatchcase(path.name, PATTERN)]


class _Loader(yaml.SafeLoader):
    """Reads YAML, and says of a value that looks like one and is none, such as the date 2026-13-45, where it is."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:  # PyYAML's own signature
        """Build the value of a node; whatever is wrong with it is a `YAMLError`."""
        try:
            value = super().construct_object(node, deep)  # pyright: ignore[reportUnknownMemberType]  # its stub leaves the node's type out
            if isinstance(value, int) and value.bit_length() > INTEGER_BITS_MAX:
                raise ValueError(f"it has {value.bit_length()} bits")
            return value
        except yaml.YAMLError:
            raise
        except Exception as exc:  # PyYAML lets through what Python's constructors raise: ValueError, KeyError, IndexError, AttributeError, ...
            text = str(node.value)[:SHOWN_MAX] if isinstance(node, yaml.ScalarNode) else ""
            raise ConstructorError(None, None, f"{text!r} is no value of the type {node.tag.removeprefix(TAG_PREFIX)} that it looks like ({exc})", node.start_mark) from exc


def describe_invalid(error: ValidationError | InvalidName) -> str:
    """Return what is wrong on one line, each problem with the path of its field."""
    if isinstance(error, InvalidName):
        return str(error)
    return "; ".join(f"{'.'.join(str(part) for part in problem['loc'])}: {describe_problem(problem)}" for problem in error.errors())


def _read_documents(path: Path) -> Iterator[dict[str, Any]]:
    documents: list[Any] = list(yaml.load_all(path.read_text(), _Loader))
    for document in documents:
        if isinstance(document, dict):
            found = cast("dict[str, Any]", document)
            if found.get("apiVersion") == API_VERSION:
                yield found


def _name_of(document: dict[str, Any]) -> Name:
    metadata = document.get("metadata")
    name = cast("dict[str, Any]", metadata).get("name") if isinstance(metadata, dict) else ""
    return str(document.get("kind")), str(name)


def _parse(document: dict[str, Any], namespace: str) -> Manifest | None:
    """Read an object of a kind that a runtime holds, its names included; None for any other, and for one of another namespace."""
    metadata = document.get("metadata")
    if isinstance(metadata, dict):
        document = {**document, "metadata": {"namespace": namespace, **cast("dict[str, Any]", metadata)}}
    if document.get("kind") == "ActorModel":
        model = ActorModel.model_validate(document)
        check_name("metadata.name", model.metadata.name)
        return model if model.metadata.namespace == namespace else None
    if document.get("kind") == "Actor":
        actor = Actor.model_validate(document)
        return actor if actor.metadata.namespace == namespace and actor.identity else None
    return None
