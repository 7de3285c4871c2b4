"""Who is alive: silence counts only when our own links could have carried a sound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_operator.planning.liveness import Evidence, Links, PodFacts, Pulse, Windows, is_departing, judge_pod, judge_pods
from aether_operator.planning.snapshot import Verdict

WINDOWS = Windows(suspect_after_s=1.0, detection_window_s=5.0)
UP = Links(nats_since_s=0.0, kube_since_s=0.0)
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


@pytest.mark.parametrize("links", [Links(None, 0.0), Links(0.0, None), Links(96.0, 0.0), Links(0.0, 96.0), Links(0.0, 0.0, awake_since_s=96.0)])
def test_nobody_is_dead_by_silence_unless_both_our_links_were_up_for_a_window(links: Links) -> None:
    assert verdict(PodFacts(), UNANSWERED, links) != "dead"


def test_time_in_which_our_link_was_down_is_not_silence() -> None:
    assert verdict(PodFacts(), SILENT, Links(99.5, 0.0)) == "alive"


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


@pytest.mark.parametrize(
    ("others", "expected"),
    [
        pytest.param([UNANSWERED], "suspect", id="nobody is heard"),
        pytest.param([Pulse(seen_s=10.0)], "suspect", id="one that was never heard shows nothing"),
        pytest.param([UNANSWERED, HEARD], "dead", id="another one is heard"),
    ],
)
def test_a_ping_is_no_witness_while_not_one_pod_is_heard(others: list[Pulse], expected: Verdict) -> None:
    pods = [Evidence(PodFacts(), pulse, UP) for pulse in (UNANSWERED, *others)]

    assert judge_pods(pods, now_s=NOW_S, windows=WINDOWS)[0] == expected


def test_while_not_one_pod_is_heard_kubernetes_is_a_witness_still() -> None:
    pods = [Evidence(facts, UNANSWERED, UP) for facts in (PodFacts(process_down=True), PodFacts(grace_s=0), PodFacts(finished=True), PodFacts())]

    assert judge_pods(pods, now_s=NOW_S, windows=WINDOWS) == ["dead", "dead", "dead", "suspect"]
