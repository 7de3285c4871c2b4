"""What a process knows of its memory."""

from __future__ import annotations

from pathlib import Path

from aether_runtime.core.passivation import MemoryUse
from aether_runtime.memory import give_back_memory, read_memory

NOTHING = Path("/nowhere")


def test_a_container_of_control_groups_2_has_a_limit_and_cache_does_not_count(tmp_path: Path) -> None:
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("700000\n")
    (tmp_path / "memory.stat").write_text("anon 1\ninactive_file 200000\nactive_file 5\n")
    assert read_memory(cgroup=tmp_path) == MemoryUse(500_000, 1_000_000)


def test_a_container_of_control_groups_1_has_a_limit(tmp_path: Path) -> None:
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.limit_in_bytes").write_text("1000000\n")
    (tmp_path / "memory/memory.usage_in_bytes").write_text("700000\n")
    (tmp_path / "memory/memory.stat").write_text("cache 1\ntotal_inactive_file 100000\n")
    assert read_memory(cgroup=tmp_path) == MemoryUse(600_000, 1_000_000)


def test_without_a_limit_there_is_no_pressure(tmp_path: Path) -> None:
    assert read_memory(cgroup=tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700000\n")
    assert read_memory(cgroup=tmp_path) is None


def test_a_limit_that_a_person_sets_is_held_against_the_resident_size(tmp_path: Path) -> None:
    found = read_memory(1_000_000_000, cgroup=tmp_path)
    assert found is not None
    assert (found.limit, 1_000_000 < found.used < 100_000_000_000) == (1_000_000_000, True)
    assert read_memory(1_000_000_000, cgroup=tmp_path, statm=NOTHING) is None


def test_memory_can_be_given_back_or_nothing_happens() -> None:
    give_back_memory()
