"""Decisions outlive stale caches, and end when the cache shows them or something newer."""

from __future__ import annotations

from dataclasses import replace

from aether_api.identity import Epoch, PodUid
from aether_kube.store import ObjectKey
from aether_operator.cluster.overlay import Overlay
from aether_operator.planning.snapshot import ActorView, Placed
from aether_operator.planning.statuses import DesiredStatus, build_placed_status, build_unplaced_status, suspended, with_status

ALICE = ActorView(key=ObjectKey("shop", "alice"), uid="1", generation=1, created="2026", resource_version=10)
PLACED = Placed("pod-a", PodUid("a"), Epoch(7))
STATUS = build_placed_status(ALICE, PLACED, "Scheduled")


def decided(status: DesiredStatus = STATUS, *, written: int | None = None) -> Overlay:
    overlay = Overlay()
    overlay.decide(ALICE, status)
    if written is not None:
        overlay.note_written(ALICE.key, status, written)
    return overlay


def test_a_decision_is_laid_over_a_stale_cache() -> None:
    assert decided().apply(ALICE).placement == PLACED
    assert decided(written=12).apply(replace(ALICE, resource_version=11)).placement == PLACED


def test_a_decision_ends_when_the_cache_shows_its_write() -> None:
    overlay = decided(written=12)
    newer = replace(with_status(ALICE, STATUS), resource_version=12)

    assert overlay.apply(newer) is newer
    assert len(overlay) == 0


def test_a_decision_whose_answer_was_lost_ends_when_the_cache_shows_it() -> None:
    overlay = decided()

    overlay.apply(replace(with_status(ALICE, STATUS), resource_version=11))

    assert len(overlay) == 0


def test_a_higher_epoch_of_another_writer_wins() -> None:
    newer = replace(ALICE, placement=Placed("pod-b", PodUid("b"), Epoch(9)), resource_version=11)

    assert decided().apply(newer) is newer


def test_a_resource_that_was_made_anew_is_not_the_one_that_was_decided_about() -> None:
    overlay = decided()

    assert overlay.apply(replace(ALICE, uid="2")).placement is None
    assert len(overlay) == 0


def test_a_newer_decision_takes_the_place_of_an_older_one() -> None:
    overlay = decided()
    later = build_unplaced_status(ALICE, Placed("", PodUid(""), Epoch(8)), suspended())
    overlay.decide(ALICE, later)

    overlay.drop(ALICE.key, STATUS)
    overlay.note_written(ALICE.key, STATUS, 99)

    assert overlay.is_current(ALICE.key, later)
    assert not overlay.is_current(ALICE.key, STATUS)
    assert overlay.apply(ALICE).phase == "Suspended"


def test_what_the_cache_shows_of_a_decision_is_no_news_whether_our_write_or_a_report_came_first() -> None:
    ours = replace(with_status(ALICE, STATUS), resource_version=11)
    reported = replace(ALICE, reported_epoch=7, phase="Ready", resource_version=11)

    assert decided().expects(ALICE, ours)
    assert decided().expects(ALICE, reported)
    assert decided(written=12).expects(reported, replace(with_status(reported, STATUS), resource_version=12))


def test_what_others_changed_beside_a_decision_is_news() -> None:
    suspended_meanwhile = replace(with_status(ALICE, STATUS), suspend=True, resource_version=11)

    assert not decided().expects(ALICE, suspended_meanwhile)
    assert not decided().expects(ALICE, replace(ALICE, reported_epoch=9, resource_version=11))
    assert not decided().expects(ALICE, replace(ALICE, uid="2"))
    assert not Overlay().expects(ALICE, suspended_meanwhile)


def test_a_decision_is_laid_over_each_state_of_the_cache_anew() -> None:
    overlay = decided()
    suspended_meanwhile = replace(ALICE, suspend=True)

    assert overlay.apply(ALICE) is overlay.apply(ALICE)
    assert overlay.apply(suspended_meanwhile).suspend
