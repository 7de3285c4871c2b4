"""Who is alive: silence counts only when our own links could have carried a sound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_operator.planning.liveness import Evidence, Links, PodFacts, Pulse, Sounds, Windows, is_departing, judge_pod
from aether_operator.planning.snapshot import Verdict

WINDOWS = Windows(suspect_after_s=1.0, detection_window_s=5.0)
UP = Links(nats_since_s=0.0, kube_since_s=0.0, heard_since_s=0.0)
NOW_S = 100.0
HEARD = Pulse(seen_s=10.0, heard_s=99.9)
SILENT = Pulse(seen_s=10.0, heard_s=98.0)
UNANSWERED = replace(SILENT, ping_failed_s=99.5)


def verdict(facts: PodFacts, pulse: Pulse, links: Links = UP) -> Verdict:
    return judge_pod(Evidence(facts, pulse, links), now_s=NOW_S, windows=WINDOWS)


def test_a_pod_that_was_just_heard_is_alive() -> None:
    assert verdict(PodFacts(), HEARD) == "alive"


def test_a_pod_that_was_never_heard_is_starting() -> None:
    assert verdict(PodFacts(), Pulse(seen_s=99.5)) == "starting"
    assert verdict(PodFacts(), Pulse(seen_s=10.0)) == "starting"


def test_silence_alone_makes_only_a_suspect() -> None:
    assert verdict(PodFacts(), SILENT) == "suspect"


def test_silence_and_an_unanswered_ping_are_death() -> None:
    assert verdict(PodFacts(), UNANSWERED) == "dead"


def test_silence_and_a_container_that_does_not_run_are_death() -> None:
    assert verdict(PodFacts(process_down=True), SILENT) == "dead"


def test_an_unanswered_ping_before_the_last_heartbeat_says_nothing() -> None:
    assert verdict(PodFacts(), replace(SILENT, ping_failed_s=97.0)) == "suspect"


def test_a_pod_that_was_silent_before_we_came_is_dead_once_it_stays_so() -> None:
    assert verdict(PodFacts(), Pulse(seen_s=10.0, ping_failed_s=99.0)) == "dead"


@pytest.mark.parametrize("broken", [{"nats_since_s": None}, {"kube_since_s": None}, {"nats_since_s": 96.0}, {"kube_since_s": 96.0}, {"awake_since_s": 96.0}])
def test_nobody_is_dead_by_silence_unless_both_our_links_were_up_for_a_window(broken: dict[str, float]) -> None:
    assert verdict(PodFacts(), UNANSWERED, replace(UP, **broken)) != "dead"


def test_time_in_which_our_link_was_down_is_not_silence() -> None:
    assert verdict(PodFacts(), SILENT, replace(UP, nats_since_s=99.5)) == "alive"


@pytest.mark.parametrize("facts", [PodFacts(finished=True), PodFacts(grace_s=0)])
def test_a_pod_that_the_api_server_calls_over_is_dead(facts: PodFacts) -> None:
    assert verdict(facts, HEARD) == "dead"


def test_a_pod_leaves_when_it_is_being_deleted_or_says_so() -> None:
    assert verdict(PodFacts(grace_s=120), HEARD) == "leaving"
    assert verdict(PodFacts(), replace(HEARD, state="leaving")) == "leaving"


def test_a_leaving_pod_that_falls_silent_is_found_dead_like_any_other() -> None:
    assert verdict(PodFacts(grace_s=120), UNANSWERED) == "dead"


@pytest.mark.parametrize("pulse", [HEARD, SILENT, UNANSWERED])
def test_a_pod_that_goes_is_departing_though_it_is_suspected_or_dead_by_now(pulse: Pulse) -> None:
    assert is_departing(PodFacts(grace_s=120), pulse)
    assert is_departing(PodFacts(finished=True), pulse)
    assert is_departing(PodFacts(), replace(pulse, state="leaving"))


@pytest.mark.parametrize("pulse", [HEARD, SILENT, UNANSWERED])
def test_a_pod_whose_process_falls_silent_without_a_word_is_not_departing(pulse: Pulse) -> None:
    assert not is_departing(PodFacts(), pulse)
    assert not is_departing(PodFacts(process_down=True), pulse)


@pytest.mark.parametrize(("heard_since_s", "expected"), [(None, "suspect"), (96.0, "suspect"), (95.0, "dead")])
def test_a_ping_is_no_witness_until_some_pod_was_heard_for_a_window(heard_since_s: float | None, expected: Verdict) -> None:
    assert verdict(PodFacts(), UNANSWERED, replace(UP, heard_since_s=heard_since_s)) == expected


@pytest.mark.parametrize("facts", [PodFacts(process_down=True), PodFacts(grace_s=0), PodFacts(finished=True)])
def test_while_not_one_pod_is_heard_kubernetes_is_a_witness_still(facts: PodFacts) -> None:
    assert verdict(facts, UNANSWERED, replace(UP, heard_since_s=None)) == "dead"


def heard_at(*times_s: float) -> Sounds:
    sounds = Sounds()
    for time_s in times_s:
        sounds = sounds.add(time_s, WINDOWS)
    return sounds


def test_before_the_first_sound_nobody_is_heard() -> None:
    assert heard_at().find_since(NOW_S, WINDOWS) is None


def test_some_pod_is_heard_since_the_first_sound_without_a_lull_before_it() -> None:
    assert heard_at(90.0, 90.6, 91.2).find_since(91.5, WINDOWS) == 90.0
    assert heard_at(90.0, 90.7, 91.2).find_since(91.5, WINDOWS) == 90.7


def test_pods_that_are_cut_off_together_are_unheard_before_the_first_of_them_is_suspected() -> None:
    first_s, last_s = 90.0, 90.3  # one heartbeat apart

    assert heard_at(first_s, last_s).find_since(first_s + WINDOWS.suspect_after_s, WINDOWS) is None
