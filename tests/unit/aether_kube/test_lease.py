"""Who leads: at most one at any time, whatever is lost, late, paused or skewed, and each one with a higher term."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Literal

import pytest

from aether_api.errors import SettingsInvalid
from aether_kube.lease import (
    CandidateStep,
    LeaseRecord,
    LeaseTiming,
    Sighting,
    Tenure,
    build_lease_patch,
    choose_step,
    claim,
    parse_lease,
    released,
    renewed,
    see,
    valid_until_s,
)

TIMING = LeaseTiming()
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HELD = LeaseRecord("b", 5, 10, 2, "then", "then", "u", "7")


@pytest.mark.parametrize(
    ("record", "unchanged_s", "step"),
    [
        (HELD, 0.0, "wait"),
        (HELD, 3.4, "wait"),
        (HELD, 3.5, "ask"),
        (HELD, 9.9, "ask"),
        (HELD, 10.0, "acquire"),
        (replace(HELD, lease_s=30), 29.0, "ask"),
        (replace(HELD, lease_s=30), 30.0, "acquire"),
        (replace(HELD, lease_s=1), 9.0, "ask"),
        (replace(HELD, holder=""), 0.0, "acquire"),
        (replace(HELD, holder="me"), 0.0, "acquire"),
        (None, 0.0, "wait"),
        (None, 2.0, "acquire"),
    ],
)
def test_a_candidate_takes_what_is_free_and_asks_before_it_takes_what_stands_still(record: LeaseRecord | None, unchanged_s: float, step: CandidateStep) -> None:
    assert choose_step("me", Sighting(record, 100.0), TIMING, now_s=100.0 + unchanged_s) == step


def test_only_a_change_of_the_record_counts_and_not_what_its_times_say() -> None:
    first = see(None, HELD, 10.0)

    assert see(first, HELD, 20.0) == first
    assert see(first, replace(HELD, resource_version="8"), 20.0).since_s == 20.0
    assert see(first, None, 20.0) == Sighting(None, 20.0)


def test_a_leader_stops_earlier_while_nobody_can_find_it_and_after_it_was_out_of_sight() -> None:
    tenure = Tenure(HELD, 100.0)

    assert valid_until_s(tenure, TIMING, in_sight_since_s=50.0) == 106.0
    assert valid_until_s(tenure, TIMING, in_sight_since_s=None) == 102.5
    assert valid_until_s(tenure, TIMING, in_sight_since_s=101.0) == 102.5


def test_a_term_is_above_the_one_before_the_clock_and_what_was_heard_of() -> None:
    now_ms = int(NOW.timestamp() * 1000)

    assert claim("me", HELD, TIMING, now=NOW).term == now_ms
    assert claim("me", replace(HELD, term=now_ms + 500), TIMING, now=NOW).term == now_ms + 501
    assert claim("me", None, TIMING, now=NOW, term_floor=now_ms + 900).term == now_ms + 901
    assert claim("me", HELD, TIMING, now=NOW).transitions == 3


def test_a_lease_that_is_given_back_keeps_the_highest_term_that_is_known() -> None:
    assert (released(HELD, now=NOW).holder, released(HELD, now=NOW).term) == ("", 5)
    assert released(HELD, now=NOW, term_floor=9).term == 9


def test_a_record_reads_back_as_it_was_written() -> None:
    record = claim("me", HELD, TIMING, now=NOW)
    document = build_lease_patch(record)

    assert replace(parse_lease(document), uid="u") == record
    assert document["metadata"] == {"annotations": {"aether.flowmade.one/term": str(record.term)}, "resourceVersion": "7"}


def test_a_lease_that_others_filled_with_nonsense_reads_as_held_by_them() -> None:
    assert parse_lease({"metadata": {"annotations": {"aether.flowmade.one/term": "x"}}, "spec": {"holderIdentity": "b", "leaseDurationSeconds": "ten"}}) == LeaseRecord("b", 0, 0)


@pytest.mark.parametrize("wrong", [{"renew_by_s": 10.0}, {"out_of_sight_s": 3.5}, {"retry_s": 2.5}, {"absent_after_s": 11.0}, {"retry_s": 0.0}])
def test_times_in_which_two_could_lead_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsInvalid, match="a lease needs"):
        LeaseTiming(**wrong)


Action = Literal["look", "renew", "arrive", "arrive unheard", "hide", "show", "touch"]

ACTIONS: dict[Action, int] = {"look": 30, "renew": 30, "arrive": 60, "arrive unheard": 6, "hide": 6, "show": 12, "touch": 1}
"""How often each thing happens, so that leaders last for some renewals and then meet trouble."""

PAUSES_S = {0.0: 30, 0.2: 40, 0.7: 8, 2.4: 2, 3.6: 2, 6.1: 1, 10.1: 1}


@dataclass
class Candidate:
    """One process: its clocks are its own, and it may be found or not."""

    name: str
    offset_s: float
    skew: timedelta
    sighting: Sighting | None = None
    tenure: Tenure | None = None
    under_way: tuple[LeaseRecord, float] | None = None
    in_sight_since_s: float | None = float("-inf")

    def leads(self, true_s: float) -> bool:
        return self.tenure is not None and true_s + self.offset_s < valid_until_s(self.tenure, TIMING, in_sight_since_s=self.in_sight_since_s)


@dataclass
class World:
    """One Lease on one server, and the writes on their way to it, which arrive whenever they like."""

    candidates: list[Candidate]
    true_s: float = 1000.0
    version: int = 1
    record: LeaseRecord | None = None
    terms: list[int] = field(default_factory=list[int])

    def step(self, action: Action, who: int, pause_s: float) -> None:
        self.true_s += pause_s
        candidate = self.candidates[who]
        now_s, wall = self.true_s + candidate.offset_s, NOW + timedelta(seconds=self.true_s) + candidate.skew
        if action == "look" and not candidate.leads(self.true_s) and candidate.under_way is None:
            self._look(candidate, now_s, wall)
        elif action == "renew" and candidate.tenure is not None and candidate.leads(self.true_s) and candidate.under_way is None:
            candidate.under_way = (renewed(candidate.tenure.record, now=wall), now_s)
        elif action in ("arrive", "arrive unheard") and candidate.under_way is not None:
            self._arrive(candidate, heard=action == "arrive")
        elif action == "hide":
            candidate.in_sight_since_s = None
        elif action == "show" and candidate.in_sight_since_s is None:
            candidate.in_sight_since_s = now_s
        elif action == "touch" and self.record is not None:
            self._store(self.record)

    def _look(self, candidate: Candidate, now_s: float, wall: datetime) -> None:
        candidate.sighting = see(candidate.sighting, self.record, now_s)
        step = choose_step(candidate.name, candidate.sighting, TIMING, now_s=now_s)
        if step == "acquire" or (step == "ask" and self._is_absent(self.record)):
            candidate.under_way = (claim(candidate.name, self.record, TIMING, now=wall), now_s)

    def _is_absent(self, record: LeaseRecord | None) -> bool:
        holder = next(candidate for candidate in self.candidates if record is not None and candidate.name == record.holder)
        return holder.in_sight_since_s is None or not holder.leads(self.true_s)

    def _arrive(self, candidate: Candidate, *, heard: bool) -> None:
        """Let a write arrive; its answer counts only if the client still waits for it."""
        assert candidate.under_way is not None
        (record, began_s), candidate.under_way = candidate.under_way, None
        if record.resource_version != (self.record.resource_version if self.record is not None else ""):
            candidate.tenure = None
            return
        stored = self._store(record)
        if stored.holder == candidate.name and heard:
            if candidate.tenure is None or candidate.tenure.record.term != stored.term:
                self.terms.append(stored.term)
            candidate.tenure = Tenure(stored, began_s)

    def _store(self, record: LeaseRecord) -> LeaseRecord:
        self.version += 1
        self.record = replace(record, resource_version=str(self.version))
        return self.record


@pytest.mark.parametrize("seed", range(25))
def test_at_most_one_leads_and_terms_rise_whatever_is_late_lost_or_paused(seed: int) -> None:
    chance = Random(seed)
    world = World([Candidate(name, chance.uniform(-99, 99), timedelta(seconds=chance.uniform(-5000, 5000))) for name in "abc"])

    for _ in range(1_000):
        (action,), (pause_s,) = chance.choices(list(ACTIONS), list(ACTIONS.values())), chance.choices(list(PAUSES_S), list(PAUSES_S.values()))
        world.step(action, chance.randrange(3), pause_s)
        leaders = [candidate.name for candidate in world.candidates if candidate.leads(world.true_s)]
        assert len(leaders) <= 1, (seed, leaders)

    assert len(world.terms) >= 3, seed
    assert world.terms == sorted(set(world.terms)), seed
