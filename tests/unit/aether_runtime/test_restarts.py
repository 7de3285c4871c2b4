"""How long a VM that failed is left alone."""

from __future__ import annotations

from aether_runtime.core.restarts import RESTART_MAX_S, RESTART_MIN_S, SERVED_S, Failures, count_failure, name_error, note_ready


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


def test_an_actor_may_fail_for_ever_without_an_end_of_its_pod() -> None:
    failures = Failures(10**6, "broken")
    assert (failures.pause_s, count_failure(failures, "broken", 0.0).count) == (RESTART_MAX_S, 10**6 + 1)


def test_an_error_that_cannot_be_written_is_called_by_its_class() -> None:
    class SpeechlessError(Exception):
        def __repr__(self) -> str:
            raise TypeError("no words")

    class StrangeError(Exception):
        def __repr__(self) -> str:
            return "a lone \ud800"

    assert [name_error(error) for error in (SpeechlessError(), StrangeError(), ValueError("x"))] == ["SpeechlessError", "a lone ?", "ValueError('x')"]
