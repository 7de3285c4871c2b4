"""Reads the audit of an API server: who asked what, one line for each answered request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from aether_kube.documents import integer_at, parse_json, text_at
from bench.kube_stage import OPERATORS

LOOK_S: Final = 0.1
"""Seconds between looks for new lines."""

WRITES: Final = frozenset({"create", "update", "patch", "delete", "deletecollection"})


@dataclass(frozen=True, slots=True)
class Call:
    """One request and its answer."""

    user: str
    verb: str
    resource: str
    code: int

    @property
    def is_ours(self) -> bool:
        """Whether the operator or a runtime pod made it."""
        return self.user in OPERATORS or self.user.startswith("system:serviceaccount:")

    @property
    def is_write(self) -> bool:
        """Whether it changed something, or tried to."""
        return self.verb in WRITES


class Audit:
    """The log of an API server, read as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = 0

    def read_new(self) -> list[Call]:
        """Return the requests that were answered since the last look."""
        with self._path.open("rb") as log:
            log.seek(self._position)
            content = log.read()
        whole = content.rpartition(b"\n")[0]
        self._position += len(whole) + 1 if whole else 0
        return [_read_call(line) for line in whole.splitlines()]

    async def wait_for(self, wanted: Callable[[Call], bool], *, timeout_s: float) -> None:
        """Wait until a request of some kind was answered."""
        async with asyncio.timeout(timeout_s):
            while not any(wanted(call) for call in self.read_new()):  # noqa: ASYNC110  # a file tells nobody that it grew
                await asyncio.sleep(LOOK_S)


def count_writes(calls: Iterable[Call], *resources: str) -> int:
    """Return how often we wrote to some resources (`actors/status`, `events`)."""
    return sum(1 for call in _find_writes(calls) if call.resource in resources)


def count_other_writes(calls: Iterable[Call], *resources: str) -> int:
    """Return how often we wrote to anything but some resources."""
    return sum(1 for call in _find_writes(calls) if call.resource not in resources)


def _find_writes(calls: Iterable[Call]) -> Iterator[Call]:
    return (call for call in calls if call.is_ours and call.is_write)


def _read_call(line: bytes) -> Call:
    document = parse_json(line)
    names = [text_at(document, "objectRef", name) for name in ("resource", "subresource")]
    return Call(text_at(document, "user", "username"), text_at(document, "verb"), "/".join(name for name in names if name), integer_at(document, "responseStatus", "code"))
