"""The window of accepted commands."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from aether_runtime.core.window import KEPT_MIN, WINDOW_S, CommandWindow, hash_command_id


def fill(count: int, *, every_s: float) -> CommandWindow:
    window = CommandWindow()
    for number in range(count):
        window.add(f"c-{number}", number + 1, number * every_s)
    return window


def test_a_command_is_found_with_the_sequence_of_its_commit() -> None:
    window = fill(3, every_s=1)
    assert [window.find(f"c-{number}") for number in range(4)] == [1, 2, 3, None]


def test_a_command_stays_known_for_the_length_of_the_window() -> None:
    window = fill(1000, every_s=1)
    oldest = 999 - int(WINDOW_S)
    assert window.find(f"c-{oldest}") == oldest + 1
    assert window.find(f"c-{oldest - 1}") is None


def test_the_last_few_stay_known_however_old_they_are() -> None:
    window = fill(KEPT_MIN, every_s=86_400)
    assert len(window) == KEPT_MIN
    assert window.find("c-0") == 1


def test_a_command_that_is_added_again_moves_to_the_newest_place() -> None:
    window = fill(3, every_s=1)
    window.add("c-0", 9, 5)
    assert [digest for digest, _, _ in window.entries()] == [hash_command_id(name) for name in ("c-1", "c-2", "c-0")]
    assert window.find("c-0") == 9


@given(st.lists(st.tuples(st.text(max_size=5), st.integers(1, 2**53), st.floats(0, 1e6)), max_size=100))
def test_a_window_that_travelled_in_a_snapshot_is_the_same(entries: list[tuple[str, int, float]]) -> None:
    window = CommandWindow()
    for command_id, sequence, time_s in entries:
        window.add(command_id, sequence, time_s)
    assert CommandWindow(window.entries()).entries() == window.entries()
