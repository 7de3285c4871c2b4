"""Who is alive: silence counts only when our own links could have carried a sound."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aether_operator.planning.liveness import Evidence, Links, PodFacts, Pulse, Sounds, Windows, is_departing, judge_pod
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


class Pods:
    """Pods that beat at times of the test, and when a ping of the first of them counts; it beats once, at 0."""

    def __init__(self) -> None:
        self.sounds = Sounds().add(0.0, WINDOWS)
        self.silent = Pulse(seen_s=0.0, heard_s=0.0, sounds_s=self.sounds.total_s)

    def hear(self, first_s: float, until_s: float, every_s: float) -> None:
        """Let another pod beat."""
        while first_s < until_s:
            self.sounds = self.sounds.add(first_s, WINDOWS)
            first_s += every_s

    def is_news(self, now_s: float) -> bool:
        return self.sounds.are_news_of(self.silent, now_s=now_s, windows=WINDOWS)


def test_a_ping_counts_at_once_while_others_are_heard_all_the_time() -> None:
    pods = Pods()
    pods.hear(0.3, 1.3, every_s=0.3)

    assert pods.is_news(1.3)


@pytest.mark.parametrize("others_until_s", [0.0, 0.3], ids=["alone", "with one that was heard a heartbeat later"])
def test_a_ping_says_nothing_while_nobody_is_heard(others_until_s: float) -> None:
    pods = Pods()
    pods.hear(0.3, others_until_s + 0.1, every_s=0.3)

    assert not any(pods.is_news(now_s) for now_s in (1.0, 1.5, 5.0, 60.0))


@pytest.mark.parametrize("outage_s", [1.1, 1.3, 3.0, 60.0])
def test_after_a_time_in_which_nobody_was_heard_a_ping_says_nothing_for_a_window(outage_s: float) -> None:
    pods = Pods()
    pods.hear(outage_s, outage_s + 6, every_s=0.3)
    late_s = outage_s + WINDOWS.detection_window_s

    assert not any(pods.is_news(outage_s + 0.1 * tenths) for tenths in range(40))
    assert pods.is_news(late_s)


@pytest.mark.parametrize(("every", "latest_s"), [(3, 1.0), (6, 1.0), (7, 6.0), (9, 9.0), (15, 13.0)])
def test_another_pod_that_beats_late_delays_it_by_a_few_windows_at_most(every: int, latest_s: float) -> None:
    """Times in tenths of a second; a pod that is silent is asked once in a second."""
    pods = Pods()
    for tenths in range(1, 200):
        if not tenths % every:
            pods.sounds = pods.sounds.add(tenths / 10, WINDOWS)
        if not tenths % 10 and pods.is_news(tenths / 10):
            break

    assert tenths / 10 <= latest_s
