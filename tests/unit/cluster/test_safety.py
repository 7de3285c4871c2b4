"""Nothing half-made is trusted, nothing that others use is ended, nothing outside is deleted."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.cluster import lifecycle
from tests.cluster.folders import Folders
from tests.cluster.image import content_of
from tests.cluster.locks import last_user, take_lease
from tests.cluster.node_build import node_image_parts
from tests.cluster.pins import KUBE_PROGRAM, KUBERNETES
from tests.cluster.processes import ClusterError, ask, attempt, work
from tests.cluster.scratch import mounts_below, scratch_folder


def test_the_last_user_is_the_one_beside_whom_nobody_holds_a_lease(tmp_path: Path) -> None:
    path = tmp_path / "locks" / "engine.used"
    first, second = take_lease(path), take_lease(path)

    first.close()
    with last_user(path) as is_last_beside_second:
        pass
    second.close()
    with last_user(path) as is_last_alone:
        pass

    assert (is_last_beside_second, is_last_alone) == (False, True)


def test_mounts_below_a_folder_are_found_deepest_first_and_siblings_are_not() -> None:
    mounts = "proc /w/debian/proc proc rw 0 0\nx /w/debian/proc/sys/fs x rw 0 0\nsysfs /w/debian2/sys sysfs rw 0 0\nd / ext4 rw 0 0\n"

    assert mounts_below(Path("/w/debian"), mounts) == ["/w/debian/proc/sys/fs", "/w/debian/proc"]


def test_a_scratch_folder_is_empty_and_unlike_the_one_of_a_killed_run(tmp_path: Path) -> None:
    left = tmp_path / "node-of-a-killed-run"
    left.mkdir()
    (left / "half").touch()

    with scratch_folder(tmp_path, "node") as folder:
        assert list(folder.iterdir()) == []
        assert folder != left
        assert not left.exists()

    assert list(tmp_path.iterdir()) == []


def test_the_images_content_changes_with_its_sources_and_base_but_not_with_compiled_files(tmp_path: Path) -> None:
    (tmp_path / "runtime/package/__pycache__").mkdir(parents=True)
    source = tmp_path / "runtime/package/a.py"
    source.write_text("a = 1\n")
    before = content_of(tmp_path, "base")

    (tmp_path / "runtime/package/__pycache__/a.pyc").write_bytes(b"x")
    (tmp_path / "unrelated.txt").write_text("x")
    same = content_of(tmp_path, "base")
    source.write_text("a = 2\n")

    assert same == before
    assert content_of(tmp_path, "base") != before
    assert content_of(tmp_path, "other") != content_of(tmp_path, "base")


def test_the_node_images_parts_are_stable_and_the_go_module_agrees_with_the_pin() -> None:
    module = Path(lifecycle.__file__).with_name(KUBE_PROGRAM.source) / "go.mod"

    assert node_image_parts() == node_image_parts()
    assert f"k8s.io/kubernetes {KUBERNETES}\n" in module.read_text()


def test_a_cluster_with_an_impossible_name_is_refused_before_anything_starts() -> None:
    for name in ("", "Upper", "../up", "a" * 33, "-a"):
        with pytest.raises(ClusterError, match="name"):
            lifecycle.ensure_cluster(name)


def test_only_folders_in_the_cache_count_as_clusters_made_here(tmp_path: Path) -> None:
    folders = Folders(tmp_path)
    assert folders.cluster_names() == []

    folders.cluster("b").mkdir(parents=True)
    folders.cluster("a").mkdir()

    assert folders.cluster_names() == ["a", "b"]


def test_a_failing_step_names_its_log_and_shows_the_end_of_it(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "step.log"

    with pytest.raises(ClusterError, match=r"(?s)step\.log.*the reason"):
        work(sys.executable, "-c", "print('the reason'); raise SystemExit(3)", log=log)


def test_a_missing_program_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="no-such-program"):
        work("no-such-program", log=tmp_path / "log")
    with pytest.raises(ClusterError, match="no-such-program"):
        ask("no-such-program")


def test_a_program_that_does_not_answer_in_time_is_given_up() -> None:
    begun_s = time.monotonic()

    assert attempt("sleep", "30", timeout_s=0.05).returncode == 124
    assert time.monotonic() - begun_s < 10
