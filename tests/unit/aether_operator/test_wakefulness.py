"""Stalls of our own process: whoever asks first after one hears of it."""

from __future__ import annotations

from aether_operator.cluster.wakefulness import STALL_S, Wakefulness


def test_looks_that_follow_each_other_are_no_stall() -> None:
    now_s = 10.0
    wakefulness = Wakefulness(lambda: now_s)
    for _ in range(50):
        now_s += STALL_S / 2
        assert wakefulness.since_s == 10.0


def test_a_stall_ends_now_for_whoever_asks_first() -> None:
    now_s = 10.0
    wakefulness = Wakefulness(lambda: now_s)
    now_s += 30.0

    assert wakefulness.since_s == 40.0
