"""Which cluster, which image, which tools: what is decided before anything is started."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.cluster.control_plane import ensure_programs
from tests.cluster.folders import Folders, find_folders
from tests.cluster.image import platform_tags
from tests.cluster.kind import are_all_ready
from tests.cluster.lifecycle import is_made_here, is_required, named_kubeconfig
from tests.cluster.node_image import Source, choose_source
from tests.cluster.processes import ClusterError
from tests.cluster.tools import is_new_enough, parse_version, path_without


@pytest.mark.parametrize(
    ("published_is_here", "built_is_here", "can_pull", "source"),
    [
        (True, True, False, Source.PUBLISHED),
        (True, False, False, Source.PUBLISHED),
        (False, True, True, Source.BUILT),
        (False, False, True, Source.PUBLISHED),
        (False, False, False, Source.BUILT),
    ],
)
def test_what_is_here_comes_before_a_pull_and_a_pull_before_a_build(*, published_is_here: bool, built_is_here: bool, can_pull: bool, source: Source) -> None:
    assert choose_source(published_is_here=published_is_here, built_is_here=built_is_here, can_pull=lambda: can_pull) is source


def test_no_pull_is_tried_when_an_image_is_here() -> None:
    def refuse() -> bool:
        raise AssertionError("a pull was tried")

    assert choose_source(published_is_here=False, built_is_here=True, can_pull=refuse) is Source.BUILT


def test_without_kubeconfig_no_cluster_is_named() -> None:
    assert named_kubeconfig({}) is None
    assert named_kubeconfig({"KUBECONFIG": ""}) is None


def test_the_named_kubeconfig_must_be_one_existing_file(tmp_path: Path) -> None:
    config = tmp_path / "config"
    config.touch()

    assert named_kubeconfig({"KUBECONFIG": str(config)}) == config.resolve()
    for value in (str(tmp_path / "missing"), f"{config}{os.pathsep}{config}"):
        with pytest.raises(ClusterError, match="KUBECONFIG"):
            named_kubeconfig({"KUBECONFIG": value})


def test_a_kubeconfig_that_up_printed_counts_as_made_here(tmp_path: Path) -> None:
    folders = Folders(tmp_path)

    assert is_made_here(folders.cluster("aether") / "kubeconfig", folders)
    assert not is_made_here(Path("/etc/kubernetes/admin.conf"), folders)


def test_nobody_is_made_to_compile_kubernetes_unless_it_is_required(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # where there is no Go

    assert ensure_programs(Folders(tmp_path), required=is_required({})) is None
    with pytest.raises(ClusterError, match="has to be built and Go is not installed"):
        ensure_programs(Folders(tmp_path), required=is_required({"AETHER_REQUIRE_CLUSTER": "1"}))


def test_the_cache_follows_xdg_and_falls_back_to_home() -> None:
    assert find_folders({"XDG_CACHE_HOME": "/x", "HOME": "/h"}).cache == Path("/x/aether/cluster")
    assert find_folders({"HOME": "/h"}).cache == Path("/h/.cache/aether/cluster")
    assert find_folders({"XDG_CACHE_HOME": "relative", "HOME": "/h"}).cache == Path("/h/.cache/aether/cluster")


@pytest.mark.parametrize(
    ("answer", "version"),
    [
        ("kind v0.33.0 go1.26.8 linux/amd64", (0, 33)),
        ('{"clientVersion": {"gitVersion": "v1.36.3"}}', (1, 36)),
        ("v3.22.0+g1234567", (3, 22)),
        ('{"gitVersion": "v1.32.4-dispatcher"}', (1, 32)),
        ("unknown command", None),
    ],
)
def test_a_version_is_read_from_what_each_tool_prints(answer: str, version: tuple[int, int] | None) -> None:
    assert parse_version(answer) == version


def test_a_tool_that_is_older_or_silent_is_not_used() -> None:
    assert is_new_enough("v1.36.3", (1, 35))
    assert not is_new_enough("v1.32.4", (1, 35))
    assert not is_new_enough("", (1, 35))


def test_our_own_links_are_not_taken_for_the_users_tools() -> None:
    assert path_without(Path("/cache/bin"), os.pathsep.join(["/cache/bin", "", "/usr/bin"])) == "/usr/bin"


@pytest.mark.parametrize(
    ("states", "ready"),
    [(["True", "True"], True), (["True", "False"], False), (["True", "Unknown"], False), ([], False)],
)
def test_a_cluster_is_ready_when_it_has_nodes_and_all_are(states: list[str], *, ready: bool) -> None:
    nodes = ",".join(f'{{"status": {{"conditions": [{{"type": "Ready", "status": "{state}"}}]}}}}' for state in states)

    assert are_all_ready(f'{{"items": [{nodes}]}}') is ready


def test_wheels_are_looked_for_from_the_newest_platform_to_the_oldest() -> None:
    tags = platform_tags("arm64")

    assert tags[0] == "manylinux_2_36_aarch64"
    assert "manylinux_2_17_aarch64" in tags
    assert tags.index("manylinux_2_28_aarch64") < tags.index("manylinux2014_aarch64")
