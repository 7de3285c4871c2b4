"""How long a VM that failed is left alone."""

from __future__ import annotations

from aether_runtime.core.restarts import RESTART_MAX_S, RESTART_MIN_S, SERVED_S, Failures, count_failure, note_ready


def fail(times: int, *, served_s: float | None) -> list[float]:
    """Return the pauses of a VM that fails again and again, after being ready for so long; None if it never is."""
    failures: Failures | None = None
    now_s, pauses = 0.0, list[float]()
    for _ in range(times):
        failures = count_failure(failures, "broken", now_s)
        pauses.append(failures.pause_s)
        now_s += failures.pause_s
        if served_s is not None:
            failures = note_ready(failures, now_s)
            now_s += served_s
    return pauses


def test_pauses_grow_although_the_vm_gets_ready_each_time() -> None:
    expected = [RESTART_MIN_S, 2.0, 4.0, 8.0, 16.0, RESTART_MAX_S, RESTART_MAX_S]
    assert fail(7, served_s=0.01) == fail(7, served_s=SERVED_S - 1) == fail(7, served_s=None) == expected


def test_who_has_served_for_a_while_begins_anew() -> None:
    assert fail(3, served_s=SERVED_S) == [RESTART_MIN_S] * 3


def test_a_person_is_told_what_happened_and_when_it_goes_on() -> None:
    first = count_failure(None, "KeyError('x')", 0.0)
    assert first.describe() == "it failed: KeyError('x'); it is started again 1 s after that, and the log of its pod says more"
    assert ", 2 times in a row: " in count_failure(first, "KeyError('x')", 1.0).describe()
