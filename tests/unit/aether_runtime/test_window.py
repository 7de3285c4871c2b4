"""The window of accepted commands."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from aether_runtime.core import window as window_module
from aether_runtime.core.window import KEPT_MIN, LEFT_OUT_S, WINDOW_S, CommandWindow, hash_command_id


def fill(count: int, *, every_s: float) -> CommandWindow:
    window = CommandWindow()
    for number in range(count):
        window.add(f"c-{number}", number + 1, number * every_s)
    return window


def test_a_command_is_found_with_the_sequence_of_its_commit() -> None:
    window = fill(3, every_s=1)
    assert [window.find(f"c-{number}") for number in range(4)] == [1, 2, 3, None]


@pytest.mark.parametrize("every_s", [0.01, 0.1, 1, 10])
def test_a_command_stays_known_for_the_length_of_the_window(every_s: float) -> None:
    window = CommandWindow()
    for number in range(3000):
        window.add(f"c-{number}", number + 1, number * every_s)
        oldest = max(0, number - int(WINDOW_S / every_s))
        assert window.find(f"c-{oldest}") == oldest + 1
        assert window.find(f"c-{number}") == number + 1


def test_what_is_older_than_the_window_is_forgotten_before_it_doubles() -> None:
    window = fill(40_000, every_s=0.1)
    assert WINDOW_S * 10 <= len(window) <= WINDOW_S * 20
    assert window.find("c-0") is None


@given(st.lists(st.integers(1, 400), max_size=300))
def test_the_last_few_stay_known_however_old_they_are(pauses_s: list[int]) -> None:
    window, now_s = CommandWindow(), 0
    for number, pause_s in enumerate(pauses_s):
        now_s += pause_s
        window.add(f"c-{number}", number + 1, now_s)
    for number in range(max(0, len(pauses_s) - KEPT_MIN), len(pauses_s)):
        assert window.find(f"c-{number}") == number + 1


def test_a_command_that_is_added_again_is_found_at_its_newest_place() -> None:
    window = fill(3, every_s=1)
    window.add("c-0", 9, 5)
    assert window.find("c-0") == 9


def test_entries_are_in_the_order_of_their_commits() -> None:
    window = fill(200, every_s=0.5)
    assert [digest for digest, _, _ in window.entries()] == [hash_command_id(f"c-{number}") for number in range(200)]


def test_commands_that_share_a_hash_are_found_with_all_their_commits_newest_first() -> None:
    window, digest = fill(100, every_s=1), hash_command_id("c-7")
    window.add_digests((digest,), 200, 100)
    window.add_digests((digest, digest), 300, 100)
    assert list(window.find_digest(digest)) == [300, 200, 8]
    assert list(window.find_digest(hash_command_id("other"))) == []


STRUCTURED = (
    "order-{0}-item-{1:03d}",
    "job-{0}/part-{1:02d}",
    "import-{0}-{1:08d}",
    "{1:08d}-{0}",
    "{0:016x}{1:016x}",
    "user{0}@example.com/{1}",
    "{0}:payment-{1}",
    "{0:064d}{1:064d}",
)


@pytest.mark.parametrize("form", STRUCTURED)
def test_ids_with_counters_in_them_do_not_share_a_hash(form: str) -> None:
    """With the bytes modulo 2^61 - 1 a fifth of them did."""
    ids = {form.format(first, second) for first in range(100) for second in range(100)}
    assert len({hash_command_id(id) for id in ids}) == len(ids)


def test_a_hash_is_the_same_on_every_machine() -> None:
    """Snapshots carry it: whoever changes it raises their format."""
    assert [hash_command_id(id) for id in ("a", "order-0-item-080", "\xe4" * 128)] == [17511437125486707701, 11896140653631154905, 14975018396124745231]


def test_a_hash_inside_another_entry_is_no_hit() -> None:
    window = CommandWindow()
    window.add("c-0", hash_command_id("c-1"), 1)
    assert window.find("c-1") is None


def test_a_busy_window_shrinks_when_its_actor_calms_down() -> None:
    window = fill(50_000, every_s=0.001)
    for number in range(60_000):
        window.add(f"later-{number}", number, 1000 + number * 10)
    assert len(window) <= 2 * KEPT_MIN + 16
    packed = window.pack()
    assert len(packed.shards) < 100


def test_an_entry_costs_some_thirty_bytes() -> None:
    shards = fill(50_000, every_s=0.001).pack().shards
    assert sum(sys.getsizeof(bytearray(shard)) + 8 for shard in shards) < 32 * 50_000


def test_where_memory_forces_entries_out_the_floor_tells_since_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "ENTRIES_MAX", 1000)
    window = fill(10_000, every_s=0.01)
    assert 700 < len(window) < 1400
    assert 80 < window.floor_s < 98
    assert all(window.find(f"c-{number}") == number + 1 for number in range(window.floor_s * 100, 10_000))


def test_a_window_that_is_too_big_for_a_snapshot_stays_behind_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(window_module, "PACKED_MAX", 1000)
    assert (len(CommandWindow(fill(1000, every_s=0.01).pack())), fill(1000, every_s=0.01).pack().floor_s) == (1000, 0)
    restored = CommandWindow(fill(1001, every_s=0.01).pack())
    assert (len(restored), restored.floor_s) == (0, LEFT_OUT_S)


ENTRIES = st.lists(st.tuples(st.text(max_size=5), st.integers(1, 2**53), st.floats(0, 1e6)), max_size=200)


@given(ENTRIES)
def test_a_window_that_travelled_in_a_snapshot_is_the_same(entries: list[tuple[str, int, float]]) -> None:
    window = CommandWindow()
    for command_id, sequence, time_s in entries:
        window.add(command_id, sequence, time_s)
    assert CommandWindow(window.pack()).entries() == window.entries()


def test_ids_that_differ_in_little_spread_over_all_shards() -> None:
    sizes = [len(shard) // 20 for shard in fill(16_000, every_s=0.001).pack().shards]
    assert max(sizes) < 80


class WindowMachine(RuleBasedStateMachine):
    """A window beside a dictionary that forgets nothing: what must be known is known, and nothing is known wrongly."""

    ids = st.integers(0, 400).map("c-{}".format)

    def __init__(self) -> None:
        super().__init__()
        self.window = CommandWindow()
        self.known: dict[str, tuple[int, int]] = {}
        self.sequence = 0
        self.now_s = 1_000

    @rule(id=ids, pause_s=st.integers(0, 40))
    def accept(self, id: str, pause_s: int) -> None:
        """Accept one command."""
        self.now_s += pause_s
        self.sequence += 1
        self.window.add(id, self.sequence, self.now_s)
        self.known[id] = (self.sequence, self.now_s)

    @rule(count=st.integers(1, 400), every_s=st.sampled_from((0, 1)))
    def accept_many(self, count: int, every_s: int) -> None:
        """Accept a burst, so that shards split, and merge when it is over."""
        for number in range(count):
            self.accept(f"burst-{self.sequence}-{number}", every_s)

    @rule()
    def travel(self) -> None:
        """Go into a snapshot and come back."""
        self.window = CommandWindow(self.window.pack())

    @rule(id=ids)
    def find(self, id: str) -> None:
        """Look one up that may never have been there."""
        sequence, _ = self.known.get(id, (0, 0))
        found = self.window.find(id)
        assert found in (sequence, None) if sequence else found is None

    @invariant()
    def young_ones_and_the_last_few_are_known(self) -> None:
        """None of them may take effect a second time."""
        for id, (sequence, second) in self.known.items():
            if self.now_s - second <= WINDOW_S or self.sequence - sequence < KEPT_MIN:
                assert self.window.find(id) == sequence

    @invariant()
    def entries_are_those_that_were_accepted(self) -> None:
        """In the order of their commits, and with their seconds."""
        sequences = [sequence for _, sequence, _ in self.window.entries()]
        assert sequences == sorted(sequences)
        assert len(sequences) == len(self.window) <= self.sequence


TestWindowMachine = WindowMachine.TestCase
TestWindowMachine.settings = settings(max_examples=25, stateful_step_count=20)
