"""The repository as others get it: generated files are current, and nothing in it speaks of the machine it was made on."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
MACHINE_PATHS = re.compile("|".join(("/" + "root/", "/" + r"home/[a-z_][a-z0-9_-]*/", "/" + "work/", "/" + r"Users/[A-Za-z]")))
"""Spelt in pieces, so that this file does not find itself."""

LOCKS = sorted((PROJECT / "requirements").glob("*.txt"))


def tracked_texts() -> list[tuple[str, str]]:
    """Return name and text of every tracked file that is text."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=PROJECT, capture_output=True, check=False)
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    texts = []
    for name in listed.stdout.decode().split("\0"):
        path = PROJECT / name
        if name and path.is_file():
            content = path.read_bytes()
            if b"\0" not in content:
                texts.append((name, content.decode(errors="replace")))
    return texts


def test_no_tracked_file_names_a_path_of_a_machine() -> None:
    found = [f"{name}:{number}: {line.strip()[:120]}" for name, text in tracked_texts() for number, line in enumerate(text.splitlines(), 1) if MACHINE_PATHS.search(line)]
    assert found == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_a_lock_names_no_package_host(lock: Path) -> None:
    assert [line for line in lock.read_text().splitlines() if re.search(r"--(extra-)?index-url|--find-links|://", line)] == []


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_package_of_a_lock_is_pinned_with_hashes(lock: Path) -> None:
    text = lock.read_text().replace("\\\n", " ")
    packages = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert packages
    assert [line[:60] for line in packages if "==" not in line or "--hash=sha256:" not in line] == []


@pytest.mark.slow
def test_the_generated_crds_are_current() -> None:
    done = subprocess.run([sys.executable, "-m", "aether_operator.crdgen", "--check"], cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
