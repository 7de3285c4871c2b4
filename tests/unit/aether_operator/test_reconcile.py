"""What becomes of a plan that breaks a rule: without its rebalancing it may be carried out all the same."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest

from aether_api.errors import InternalError
from aether_operator.cluster.reconcile import make_sound_plan
from aether_operator.planning import placer
from aether_operator.planning.affinity import Crowds
from aether_operator.planning.pace import Pace
from aether_operator.planning.rebalance import Holder, Move
from aether_operator.planning.snapshot import Snapshot
from tests.unit.aether_operator.snapshots import POOL, actor, pod, snapshot


def uneven_with_a_newcomer() -> Snapshot:
    held = [actor(f"held-{i}", on="a") for i in range(10)]
    return snapshot([*held, actor("alice")], [pod("a"), pod("b")], paces={POOL: Pace(is_evening=True)})


def move_to_itself(holders: Sequence[Holder], crowds: Crowds, budget: int) -> tuple[list[Move], bool]:
    """Move an actor for nothing, as only a bug would."""
    fullest = max(holders, key=lambda holder: holder.seat.load)
    return [Move(next(iter(fullest.actors.values()))[0], fullest.seat.pod)], True


def place_nobody(_: placer.Placer) -> None:
    """Leave everybody out."""


def test_a_plan_whose_rebalancing_breaks_a_rule_is_made_without_it_and_said_loudly(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(placer, "find_moves", move_to_itself)

    plan = make_sound_plan(uneven_with_a_newcomer())

    assert [(change.actor.key.name, change.cause) for change in plan.changes] == [("alice", "Scheduled")]
    assert (plan.paces, plan.again_after_s) == ({}, None)
    assert {cost.pod.uid: cost.cost for cost in plan.costs} == {"a": 10, "b": 1}
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def test_a_plan_that_breaks_a_rule_without_rebalancing_as_well_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placer, "find_moves", move_to_itself)
    monkeypatch.setattr(placer.Placer, "place_all", place_nobody)

    with pytest.raises(InternalError, match="could be placed and is not"):
        make_sound_plan(uneven_with_a_newcomer())


def test_a_sound_plan_keeps_its_rebalancing(caplog: pytest.LogCaptureFixture) -> None:
    plan = make_sound_plan(uneven_with_a_newcomer())

    assert {change.cause for change in plan.changes} == {"Scheduled", "Rebalanced"}
    assert caplog.records == []
