"""runc is asked for what the host grants, and for nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.bounded_runc import CAPABILITIES, cut_capabilities, find_file, is_complete, read_bounding_set, rewrite

STATUS = "Name:\tdockerd\nCapInh:\t0000000000000000\nCapBnd:\t000001fffeffffff\n"
"""A host that withholds bit 24, CAP_SYS_RESOURCE."""


def test_the_bounding_set_lacks_what_the_host_withholds() -> None:
    granted = read_bounding_set(STATUS)

    assert len(granted) == len(CAPABILITIES) - 1
    assert "CAP_SYS_RESOURCE" not in granted
    assert "CAP_SYS_ADMIN" in granted


def test_only_a_host_that_grants_everything_is_complete() -> None:
    assert is_complete(read_bounding_set("CapBnd:\t000001ffffffffff\n"))
    assert not is_complete(read_bounding_set(STATUS))


def test_every_set_of_a_process_is_cut_and_the_rest_is_kept() -> None:
    process: dict[str, object] = {"args": ["sh"], "capabilities": {"bounding": ["CAP_KILL", "CAP_SYS_RESOURCE"], "ambient": None}}

    assert cut_capabilities(process, frozenset({"CAP_KILL"})) == {"args": ["sh"], "capabilities": {"bounding": ["CAP_KILL"], "ambient": []}}


def test_a_process_without_capabilities_stays_as_it_is() -> None:
    assert cut_capabilities({"args": ["sh"]}, frozenset()) == {"args": ["sh"]}


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["--root", "/run", "create", "--bundle", "/b", "id"], (Path("/b/config.json"), True)),
        (["create", "--bundle=/b", "id"], (Path("/b/config.json"), True)),
        (["run", "-b", "/b", "id"], (Path("/b/config.json"), True)),
        (["create", "id"], (Path("config.json"), True)),
        (["exec", "--process", "/tmp/p", "id"], (Path("/tmp/p"), False)),
        (["exec", "id", "sh"], None),
        (["delete", "--force", "id"], None),
    ],
)
def test_the_file_with_the_process_is_found_in_every_spelling_of_the_call(arguments: list[str], found: tuple[Path, bool] | None) -> None:
    assert find_file(arguments) == found


@pytest.mark.parametrize("is_bundle", [True, False])
def test_rewriting_a_file_changes_its_capabilities_alone(tmp_path: Path, *, is_bundle: bool) -> None:
    process = {"cwd": "/", "capabilities": {"effective": ["CAP_KILL", "CAP_SYS_RESOURCE"]}}
    path = tmp_path / "file.json"
    path.write_text(json.dumps({"ociVersion": "1", "process": process} if is_bundle else process))

    rewrite(path, is_bundle=is_bundle, granted=frozenset({"CAP_KILL"}))

    expected = {"cwd": "/", "capabilities": {"effective": ["CAP_KILL"]}}
    assert json.loads(path.read_text()) == ({"ociVersion": "1", "process": expected} if is_bundle else expected)
