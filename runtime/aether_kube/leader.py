"""Leads while the Lease is ours, and stops at once when it is not: the waiting and writing around `lease`.

`LeaderElector.run` campaigns until the Lease is ours, then runs the given work beside the renewals. The work ends when the tenure does:
a renewal that hangs is given up when the tenure runs out, an answer that says that somebody else holds the Lease ends it at once, and
so does a monotonic clock that jumped because the process was stopped. Cancelling the work takes a turn of the loop, so whoever
acts also asks `Leadership.check` right before each act: nothing leaves after the tenure, whatever was under way.

The client must be the elector's own: calls of others that hang must not hold renewals up.
"""

from __future__ import annotations

import asyncio
import logging
import random as random_module
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Final, Protocol, cast

from aether_api import logs
from aether_api.errors import InternalError, KubeAlreadyExists, KubeConflict, KubeNotFound, LeadershipLost, PermanentError, RetryableError
from aether_kube.client import MERGE_PATCH, Body, KubeClient
from aether_kube.documents import JsonObject, object_at
from aether_kube.kinds import LEASES
from aether_kube.lease import LeaseRecord, LeaseTiming, Sighting, Tenure, build_lease_patch, choose_step, claim, parse_lease, released, renewed, see, valid_until_s

logger = logging.getLogger(__name__)

CALL_TIMEOUT_S: Final = 2.0
"""Seconds for one call: 200 times a healthy write, and three tries fit into a tenure."""

FAILURES_BETWEEN_WARNINGS: Final = 30
"""Failures in a row from one warning to the next: half a minute of an API server that is away."""


class Witness(Protocol):
    """A second way from candidate to leader, beside the API server."""

    @property
    def in_sight_since_s(self) -> float | None:
        """Since when others can find this process on that way, in monotonic seconds; None while they cannot."""
        ...

    async def is_absent(self, holder: str) -> bool:
        """Return whether the holder surely does not lead: nobody answers for it, or it says so itself. Bounded in time."""
        ...


@dataclass(frozen=True, slots=True)
class LeasePlace:
    """Where the Lease is."""

    namespace: str
    name: str

    @property
    def path(self) -> str:
        """Return the path of the object."""
        return LEASES.path(self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Clocks:
    """The times and the chance of an elector."""

    monotonic: Callable[[], float] = time.monotonic
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    random: Callable[[], float] = random_module.random


class Leadership:
    """One tenure of this process. Whoever acts for it asks `check` right before each act.

    Once somebody was told that it is over, it is: a renewal whose answer comes after that does not bring it back, since whoever was
    told has ended his part already.
    """

    def __init__(self, tenure: Tenure, timing: LeaseTiming, witness: Witness, monotonic: Callable[[], float]) -> None:
        """Begin a tenure."""
        self.tenure = tenure
        self.higher_term = 0
        self._lost = ""
        self._timing = timing
        self._witness = witness
        self._monotonic = monotonic

    @property
    def term(self) -> int:
        """Return the term, by which those who take orders tell leaders apart."""
        return self.tenure.record.term

    @property
    def valid_until_s(self) -> float:
        """Return until when it lasts, in monotonic seconds."""
        return valid_until_s(self.tenure, self._timing, in_sight_since_s=self._witness.in_sight_since_s)

    @property
    def is_valid(self) -> bool:
        """Return whether this process may act now."""
        return not self._lost and self.higher_term <= self.term and self._monotonic() < self.valid_until_s

    def check(self) -> None:
        """Return if this process may act now.

        Raises:
            LeadershipLost: it may not.
        """
        if self.is_valid:
            return
        self._lost = self._lost or (f"term {self.higher_term} rules, ours is {self.term}" if self.higher_term > self.term else "the lease could not be renewed in time")
        raise LeadershipLost(self._lost)

    def note_term(self, term: int) -> None:
        """Take note of a term that somebody was told by a leader; a higher one than ours ends this tenure.

        Raises:
            LeadershipLost: it is higher.
        """
        self.higher_term = max(self.higher_term, term)
        self.check()


Lead = Callable[[Leadership], Awaitable[None]]
"""The work of a leader; it ends only by cancellation or an error."""


@dataclass(slots=True)
class _Campaign:
    """What a candidate remembers from look to look."""

    sighting: Sighting | None = None
    failures: int = 0
    term_floor: int = field(default=0)


class LeaderElector:
    """One candidate for one Lease."""

    def __init__(self, client: KubeClient, place: LeasePlace, me: str, witness: Witness, *, timing: LeaseTiming | None = None, clocks: Clocks | None = None) -> None:
        """Make a candidate; `run` campaigns.

        Args:
            client: used by nobody else.
            me: a name that no other process ever had.
        """
        self._client = client
        self._place = place
        self._me = me
        self._witness = witness
        self._timing = timing or LeaseTiming()
        self._clocks = clocks or Clocks()
        self.last_turn_s = self._clocks.monotonic()
        self.leadership: Leadership | None = None

    @property
    def term(self) -> int:
        """Return the term under which this process acts, 0 while it does not."""
        return self.leadership.term if self.leadership is not None and self.leadership.is_valid else 0

    async def run(self, lead: Lead) -> None:
        """Lead whenever the Lease is ours, until cancelled; it is given back at the end.

        Whatever else ends the work, such as a bug of it, is raised after the Lease was given back, so that the next one begins at once.
        """
        campaign = _Campaign()
        while True:
            leadership = await self._campaign(campaign)
            await self._serve(leadership, lead)
            _heed_cancellation()
            campaign = _Campaign(term_floor=leadership.higher_term)

    async def _campaign(self, campaign: _Campaign) -> Leadership:
        while True:
            self.last_turn_s = self._clocks.monotonic()
            try:
                leadership = await self._look(campaign)
                campaign.failures = 0
            except (RetryableError, PermanentError) as exc:
                leadership = None
                campaign.failures += 1
                self._log_failure("the lease cannot be read or written; nobody may lead", campaign.failures, exc)
            if leadership is not None:
                return leadership
            # Spread, so that candidates do not look at the same moments for ever.
            await asyncio.sleep(self._timing.retry_s * (0.8 + 0.2 * self._clocks.random()))

    async def _look(self, campaign: _Campaign) -> Leadership | None:
        """Read the Lease once and take it if it is free; None if it is not."""
        record = await self._read()
        now_s = self._clocks.monotonic()
        campaign.sighting = see(campaign.sighting, record, now_s)
        step = choose_step(self._me, campaign.sighting, self._timing, now_s=now_s)
        if step == "wait" or (step == "ask" and not await self._is_absent(record)):
            return None
        began_s = self._clocks.monotonic()
        wanted = claim(self._me, record, self._timing, now=self._clocks.now(), term_floor=campaign.term_floor)
        try:
            written = await self._write(wanted)
        except (KubeConflict, KubeAlreadyExists):
            # Somebody else was faster, or the holder is back.
            return None
        return Leadership(Tenure(written, began_s), self._timing, self._witness, self._clocks.monotonic)

    async def _is_absent(self, record: LeaseRecord | None) -> bool:
        return record is not None and await self._witness.is_absent(record.holder)

    async def _serve(self, leadership: Leadership, lead: Lead) -> None:
        self.leadership = leadership
        extra = {logs.NAME: self._me, logs.COUNT: leadership.term}
        logger.info("this process leads", extra=extra)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_run_lead(lead, leadership), name="leader")
                await self._keep(leadership)
        except* LeadershipLost as lost:
            logger.warning("this process leads no longer", extra={**extra, logs.REASON: str(_first(lost))})
        finally:
            self.leadership = None
            await self._give_back(leadership)

    async def _keep(self, leadership: Leadership) -> None:
        """Renew until the tenure ends, which it does by an error."""
        failures = 0
        due_s = leadership.tenure.renewed_s + self._timing.retry_s
        while True:
            await asyncio.sleep(max(0.0, min(due_s, leadership.valid_until_s) - self._clocks.monotonic()))
            leadership.check()
            self.last_turn_s = self._clocks.monotonic()
            due_s = self.last_turn_s + self._timing.retry_s
            try:
                await self._renew(leadership)
                failures = 0
            except LeadershipLost:
                raise
            except (RetryableError, PermanentError) as exc:
                failures += 1
                self._log_failure("the lease could not be renewed", failures, exc)

    async def _renew(self, leadership: Leadership) -> None:
        try:
            await self._renew_once(leadership)
        except (KubeConflict, KubeNotFound, KubeAlreadyExists):
            await self._look_again(leadership)
            await self._renew_once(leadership)

    async def _renew_once(self, leadership: Leadership) -> None:
        began_s = self._clocks.monotonic()
        wanted = renewed(leadership.tenure.record, now=self._clocks.now())
        written = await self._write(wanted, timeout_s=max(0.0, min(CALL_TIMEOUT_S, leadership.valid_until_s - began_s)))
        leadership.tenure = Tenure(written, began_s)

    async def _look_again(self, leadership: Leadership) -> None:
        """Find out whether somebody only touched the Lease, or deleted it, or holds it now.

        Raises:
            LeadershipLost: it is another's.
        """
        record, ours = await self._read(), leadership.tenure.record
        if record is not None and not _is_same_tenure(record, ours):
            raise LeadershipLost(f"{record.holder or 'nobody'} holds the lease, in term {record.term}")
        version = record.resource_version if record is not None else ""
        leadership.tenure = replace(leadership.tenure, record=replace(ours, resource_version=version))

    async def _give_back(self, leadership: Leadership) -> None:
        """Free the Lease if it is still ours, so that the next one need not wait; bounded in time, and no harm if it fails."""
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                record = await self._read()
                if record is not None and _is_same_tenure(record, leadership.tenure.record):
                    await self._write(released(record, now=self._clocks.now(), term_floor=leadership.higher_term))
        except (TimeoutError, RetryableError, PermanentError) as exc:
            logger.debug("the lease could not be given back; it runs out", extra={logs.REASON: str(exc)})

    async def _read(self) -> LeaseRecord | None:
        try:
            return parse_lease(await self._client.request("GET", self._place.path, timeout_s=CALL_TIMEOUT_S))
        except KubeNotFound:
            return None

    async def _write(self, record: LeaseRecord, *, timeout_s: float = CALL_TIMEOUT_S) -> LeaseRecord:
        """Write a record over the one that it was made from, or create the Lease where there was none."""
        patch = build_lease_patch(record)
        if record.resource_version:
            answer = await self._client.request("PATCH", self._place.path, body=Body(patch, MERGE_PATCH), timeout_s=timeout_s)
        else:
            answer = await self._client.request("POST", LEASES.path(self._place.namespace), body=Body(self._named(patch)), timeout_s=timeout_s)
        return parse_lease(answer)

    def _named(self, patch: JsonObject) -> JsonObject:
        document = LEASES.document(self._place.namespace, self._place.name)
        object_at(document, "metadata").update(object_at(patch, "metadata"))
        return {**patch, **document}

    def _log_failure(self, message: str, failures: int, error: Exception) -> None:
        level = logging.WARNING if failures % FAILURES_BETWEEN_WARNINGS == 3 else logging.DEBUG
        logger.log(level, message, extra={logs.NAME: self._me, logs.REASON: str(error), logs.COUNT: failures})


def _is_same_tenure(one: LeaseRecord, other: LeaseRecord) -> bool:
    return (one.holder, one.term) == (other.holder, other.term)


def _first(error: Exception) -> Exception:
    """Return the first error in the depth of a group."""
    return _first(cast("ExceptionGroup[Exception]", error).exceptions[0]) if isinstance(error, ExceptionGroup) else error


def _heed_cancellation() -> None:
    """Raise if this task was cancelled: a TaskGroup that ends with an error forgets a cancellation that came meanwhile, until Python 3.13."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


async def _run_lead(lead: Lead, leadership: Leadership) -> None:
    await lead(leadership)
    raise InternalError("the work of a leader ended by itself")
