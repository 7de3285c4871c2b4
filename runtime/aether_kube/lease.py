"""Decides who leads, by a `coordination.k8s.io/Lease` that every candidate reads and writes. Pure: times come in.

- **No clock of another machine counts.** A candidate measures, with its own monotonic clock, for how long it has seen the record
  unchanged; the times inside are for people. A tenure counts from before the request that renewed it was sent, so whoever leads
  always thinks that it ends earlier than everybody else does.
- **Of two writers one wins**: every write names the resourceVersion that it was decided on.
- **The term rises** with every change of leader, above the clock, so that it rises even when somebody deletes the Lease; whoever takes
  orders refuses those of a lower term. `leaseTransitions` would begin anew with the object.
- **A holder that surely does not lead is not waited for.** A candidate may have a second way to the holder (a `Witness`). If that way
  finds nobody, a lease that stood still for `absent_after_s` is free; in turn a leader that cannot be found on that way stops at
  `out_of_sight_s`, which is earlier. If the holder itself says that it does not lead, it does not.
- **A Lease that is missing** is made anew by its leader within one renewal, so a candidate waits two.

Prior art: client-go's leader election, without its clock of the record; CloudNativePG's primary that stops when it is cut off.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final, Literal

from aether_api.errors import SettingsInvalid
from aether_api.v1alpha1.meta import GROUP
from aether_kube.documents import JsonObject, format_micro_time, integer_at, text_at, texts_at

TERM_ANNOTATION: Final = f"{GROUP}/term"

LEASE_S: Final = 10.0
"""Seconds for which a Lease that stands still belongs to its holder: longer than any pause of an API server whose leader changes."""

RENEW_BY_S: Final = 6.0
"""Seconds after which a leader that could not renew stops: the rest of the lease is for calls that are already on their way."""

RETRY_S: Final = 1.0
"""Seconds between renewals, and between looks of a candidate: one write a second for the whole operator."""

ABSENT_AFTER_S: Final = 3.5
"""Seconds without a renewal after which a holder that nobody finds has lost its lease: three renewals are missing."""

OUT_OF_SIGHT_S: Final = 2.5
"""Seconds after its last renewal at which a leader stops if the others cannot find it: two renewals failed, and it is early enough."""

RENEWALS_MISSING: Final = 2
"""Renewals that a candidate waits for a Lease that is not there: its leader, if there is one, puts it back with the first."""

CandidateStep = Literal["acquire", "ask", "wait"]


@dataclass(frozen=True, slots=True)
class LeaseTiming:
    """How long to wait, in seconds; see the constants for their reasons."""

    lease_s: float = LEASE_S
    renew_by_s: float = RENEW_BY_S
    retry_s: float = RETRY_S
    absent_after_s: float = ABSENT_AFTER_S
    out_of_sight_s: float = OUT_OF_SIGHT_S

    def __post_init__(self) -> None:
        """Refuse an order of times in which two could lead at once."""
        if not 0 < self.retry_s < self.out_of_sight_s < self.absent_after_s <= self.lease_s:
            raise SettingsInvalid("a lease needs 0 < retry_s < out_of_sight_s < absent_after_s <= lease_s: a leader that nobody finds must stop before it is replaced")
        if not self.out_of_sight_s <= self.renew_by_s < self.lease_s:
            raise SettingsInvalid("a lease needs out_of_sight_s <= renew_by_s < lease_s: a leader must stop before its lease is free")


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """What a Lease says.

    Attributes:
        holder: the process that leads, empty when it was given back.
        lease_s: seconds that the holder claims.
        acquired: when this tenure began, for people.
        renewed: when it was renewed last; compared as text and never read as a time.
    """

    holder: str
    term: int
    lease_s: int
    transitions: int = 0
    acquired: str = ""
    renewed: str = ""
    uid: str = ""
    resource_version: str = ""


@dataclass(frozen=True, slots=True)
class Sighting:
    """A record as a candidate sees it, and since when it has not changed; None stands for a Lease that is not there."""

    record: LeaseRecord | None
    since_s: float


@dataclass(frozen=True, slots=True)
class Tenure:
    """A leader's own view: the record that it wrote last, and when the write that brought it about was begun."""

    record: LeaseRecord
    renewed_s: float


def see(known: Sighting | None, record: LeaseRecord | None, now_s: float) -> Sighting:
    """Return what a candidate knows after it has read the record, `now_s` being after the answer."""
    return known if known is not None and known.record == record else Sighting(record, now_s)


def choose_step(me: str, sighting: Sighting, timing: LeaseTiming, *, now_s: float) -> CandidateStep:
    """Return what a candidate shall do: acquire the lease, ask the witness whether its holder is there, or wait."""
    record, unchanged_s = sighting.record, now_s - sighting.since_s
    if record is None:
        return "acquire" if unchanged_s >= RENEWALS_MISSING * timing.retry_s else "wait"
    if record.holder in ("", me) or unchanged_s >= max(timing.lease_s, record.lease_s):
        return "acquire"
    return "ask" if unchanged_s >= timing.absent_after_s else "wait"


def valid_until_s(tenure: Tenure, timing: LeaseTiming, *, in_sight_since_s: float | None) -> float:
    """Return until when a leader may act.

    Args:
        in_sight_since_s: since when the others can find it without the API server, None while they cannot. Having been out of sight
            counts until the next renewal, since somebody may have looked just then.
    """
    seen = in_sight_since_s is not None and in_sight_since_s <= tenure.renewed_s
    return tenure.renewed_s + (timing.renew_by_s if seen else timing.out_of_sight_s)


def claim(me: str, known: LeaseRecord | None, timing: LeaseTiming, *, now: datetime, term_floor: int = 0) -> LeaseRecord:
    """Return the record of a new tenure.

    Args:
        term_floor: the highest term that is known to have ruled, whatever the Lease says.
    """
    written = format_micro_time(now)
    return LeaseRecord(
        holder=me,
        term=max(int(now.timestamp() * 1000), term_floor + 1, known.term + 1 if known is not None else 0),
        lease_s=max(1, round(timing.lease_s)),
        transitions=known.transitions + 1 if known is not None else 0,
        acquired=written,
        renewed=written,
        uid=known.uid if known is not None else "",
        resource_version=known.resource_version if known is not None else "",
    )


def renewed(record: LeaseRecord, *, now: datetime) -> LeaseRecord:
    """Return the record of the same tenure, renewed."""
    return replace(record, renewed=format_micro_time(now))


def released(record: LeaseRecord, *, now: datetime, term_floor: int = 0) -> LeaseRecord:
    """Return the record that gives the lease back; its term carries what this leader learnt of higher ones."""
    return replace(record, holder="", term=max(record.term, term_floor), lease_s=1, renewed=format_micro_time(now))


def parse_lease(document: JsonObject) -> LeaseRecord:
    """Read a Lease; what is missing or no number reads as empty."""
    term = texts_at(document, "metadata", "annotations").get(TERM_ANNOTATION, "")
    return LeaseRecord(
        holder=text_at(document, "spec", "holderIdentity"),
        term=int(term) if term.isascii() and term.isdigit() else 0,
        lease_s=integer_at(document, "spec", "leaseDurationSeconds"),
        transitions=integer_at(document, "spec", "leaseTransitions"),
        acquired=text_at(document, "spec", "acquireTime"),
        renewed=text_at(document, "spec", "renewTime"),
        uid=text_at(document, "metadata", "uid"),
        resource_version=text_at(document, "metadata", "resourceVersion"),
    )


def build_lease_patch(record: LeaseRecord) -> JsonObject:
    """Return the merge patch that makes a Lease say this, on the condition that it is still the one that was read."""
    metadata: JsonObject = {"annotations": {TERM_ANNOTATION: str(record.term)}}
    if record.resource_version:
        metadata["resourceVersion"] = record.resource_version
    spec: JsonObject = {"holderIdentity": record.holder, "leaseDurationSeconds": record.lease_s, "leaseTransitions": record.transitions}
    times: JsonObject = {"acquireTime": record.acquired, "renewTime": record.renewed}
    return {"metadata": metadata, "spec": {**spec, **times}}
