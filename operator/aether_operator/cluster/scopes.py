"""Decides which of the watched namespaces count: one that refuses us must not hold up the others.

A namespace that is deleted takes its Role along, and from then on the API server answers 403 to all that is asked there. Such a scope is
*lost* while another one is well: nobody waits for it, and only its own pods are spared from being condemned, since nothing is seen of
them. If all are refused, the fault is ours or the API server's, and all count.

A scope is *listed* when all of its kinds were. Before, nothing of it is shown, as what is not there yet would look as if it were missing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Final, Protocol

from aether_api import logs
from aether_kube.informer import InformerHealth
from aether_kube.kinds import ResourceKind

logger = logging.getLogger(__name__)

EVERYWHERE: Final = None
"""The scope of all namespaces; it has no other one beside it, so it is never lost."""

Scope = str | None


class AnyInformer(Protocol):
    """What can be asked of an informer of any kind."""

    on_health: Callable[[], None]

    @property
    def synced(self) -> asyncio.Event:
        """Set once the collection was listed."""
        ...

    def health(self) -> InformerHealth:
        """Return how the link is."""
        ...

    async def run(self) -> None:
        """Keep the copy until cancelled."""
        ...


class Scopes:
    """The informers of all watched namespaces, and how these are."""

    def __init__(self, names: Iterable[Scope]) -> None:
        """Start without informers.

        Args:
            names: namespaces, or EVERYWHERE alone.
        """
        self._informers: dict[Scope, list[tuple[ResourceKind, AnyInformer]]] = {name: [] for name in names}
        self._listed: set[Scope] = set()
        self._lost: set[Scope] = set()
        self._told: set[Scope] = set()
        self._changed = asyncio.Event()
        self.on_listed: Callable[[], None] = lambda: None

    def __iter__(self) -> Iterator[Scope]:
        """Iterate over the names."""
        return iter(self._informers)

    def add(self, scope: Scope, kind: ResourceKind, informer: AnyInformer) -> None:
        """Add an informer, which tells us from now on how it is."""
        self._informers[scope].append((kind, informer))
        informer.on_health = self._look

    def informers(self) -> Iterator[tuple[ResourceKind, AnyInformer]]:
        """Iterate over all informers, those of lost scopes included."""
        for informers in self._informers.values():
            yield from informers

    def healthy_since_s(self, *kinds: ResourceKind) -> float | None:
        """Return since when the informers of these kinds work, in monotonic seconds; None while one does not. Lost scopes do not count."""
        counting = [informer for scope, informers in self._informers.items() if scope not in self._lost for kind, informer in informers if kind in kinds]
        since = [moment for informer in counting if (moment := informer.health().healthy_since_s) is not None]
        return max(since) if since and len(since) == len(counting) else None

    def is_listed(self, scope: Scope) -> bool:
        """Return whether all kinds of a scope were listed."""
        return scope in self._listed

    def is_lost(self, namespace: str) -> bool:
        """Return whether a namespace refuses us while others do not."""
        return namespace in self._lost

    async def wait_listed(self) -> None:
        """Wait until every scope that is not lost was listed once."""
        while not all(scope in self._listed or scope in self._lost for scope in self._informers):
            self._changed.clear()
            await self._changed.wait()

    def _look(self) -> None:
        """Take in how the informers are, after one of them has listed, failed, or begun to watch."""
        listed = {scope for scope, informers in self._informers.items() if all(informer.synced.is_set() for _, informer in informers)}
        is_new = listed != self._listed
        refusals = {scope: kinds for scope in self._informers if (kinds := self._find_refused(scope))}
        self._listed = listed
        self._lost = set(refusals) if any(self._is_well(scope) for scope in self._informers) else set()
        self._tell(refusals)
        self._changed.set()
        if is_new:
            self.on_listed()

    def _find_refused(self, scope: Scope) -> list[str]:
        return [kind.plural for kind, informer in self._informers[scope] if informer.health().refused]

    def _is_well(self, scope: Scope) -> bool:
        return all(informer.health().healthy_since_s is not None for _, informer in self._informers[scope])

    def _tell(self, refusals: dict[Scope, list[str]]) -> None:
        """Log what begins and ends, once each; that the others were away meanwhile begins nothing anew."""
        for scope in self._lost - self._told:
            extra = {logs.NAMESPACE: scope, logs.KIND: ", ".join(refusals[scope])}
            logger.error("a namespace refuses us and is left out; give the operator its rights there back, or take it out of watchNamespaces", extra=extra)
        for scope in self._told - set(refusals):
            logger.info("a namespace that refused us is looked after again", extra={logs.NAMESPACE: scope})
        self._told = (self._told | self._lost) & set(refusals)
