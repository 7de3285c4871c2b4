"""Makes, checks and deletes kind clusters.

A cluster is known by its folder in the cache. The folder is made before kind begins and holds a `ready` marker only after all
nodes were Ready, so a run that is killed leaves a folder without marker: the next run deletes that cluster and makes it again.
A marked cluster is checked before use (its containers run, the API server answers, all nodes are Ready) and made again if it
fails, for example because the engine was stopped meanwhile or a pin changed. A kind cluster of that name without a folder is
somebody else's and is never touched.
"""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Final

from .debian import fingerprint
from .folders import PROJECT, Folders
from .processes import ClusterError, ask, attempt, say, step, work

CONFIG: Final = PROJECT / "kind-config.yaml"
"""The shape of the cluster; also for people who call kind themselves."""

READY_S: Final = 240
"""Seconds for all nodes to be Ready; 45 on 2 quiet cores, several times that beside other work."""

CHECK_S: Final = 30.0
"""Seconds for a marked cluster to show that it still works; a busy API server takes a few to answer."""

DELETE_S: Final = 120.0
"""Seconds for all nodes to be gone. The engine finishes the making of a node whose maker was killed (it copies the node's 1 GB
of images first, up to 20 s for three), and only then lets it be deleted."""

KEEP: Final = "keep"
"""The marker of a cluster that a person asked to keep: the end of a test run leaves it alone."""


def ensure_kind_cluster(name: str, image: str, folders: Folders) -> Path:
    """Return the kubeconfig of a kind cluster that works, made now unless it is there.

    Raises:
        ClusterError: kind failed, or a cluster of this name exists that was not made here.
    """
    folder = folders.cluster(name)
    made_from = fingerprint(image, CONFIG.read_bytes())
    if _marked(folder) == made_from and _works(name, folder, folders):
        return folder / "kubeconfig"
    if not folder.exists() and name in _known_to_kind(folders):
        raise ClusterError(f"a kind cluster {name} exists and was not made here; choose another name, or delete it: kind delete cluster --name {name}")
    if folder.exists():
        say(f"the cluster {name} is half-made, stopped or of other versions; making it again")
        is_kept = (folder / KEEP).exists()
        delete_kind_cluster(name, folders)
        mark_kept(name, folders, is_kept=is_kept)
    folder.mkdir(parents=True, exist_ok=True)
    _create(name, image, folders)
    new = folder / ".ready.new"
    new.write_text(made_from)
    new.rename(folder / "ready")
    return folder / "kubeconfig"


def mark_kept(name: str, folders: Folders, *, is_kept: bool) -> None:
    """Note whether a person asked to keep the cluster beyond the run that made it."""
    if is_kept:
        folders.cluster(name).mkdir(parents=True, exist_ok=True)
        (folders.cluster(name) / KEEP).touch()


def is_kept(name: str, folders: Folders) -> bool:
    """Tell whether a person asked to keep the cluster."""
    return (folders.cluster(name) / KEEP).exists()


def delete_kind_cluster(name: str, folders: Folders) -> None:
    """Delete a kind cluster that was made here; the folder goes last, so that an interrupted deletion is continued.

    Raises:
        ClusterError: containers of it are still there.
    """
    folder = folders.cluster(name)
    (folder / "ready").unlink(missing_ok=True)
    delete = (folders.bin / "kind", "delete", "cluster", "--name", name, "--kubeconfig", folder / "kubeconfig")
    deadline_s = time.monotonic() + DELETE_S
    work(*delete, log=folders.log("kind-delete"))
    while _node_states(name):
        if time.monotonic() > deadline_s:
            raise ClusterError(f"nodes of the kind cluster {name} cannot be deleted; see `docker ps --all`")
        time.sleep(1.0)
        work(*delete, log=folders.log("kind-delete"))
    shutil.rmtree(folder, ignore_errors=True)


def load_into_kind(name: str, image: str, folders: Folders) -> None:
    """Load an image of the engine into the nodes that run pods; those that have it already are left alone."""
    nodes = ask(folders.bin / "kind", "get", "nodes", "--name", name).split()
    workers = [node for node in nodes if not node.endswith("control-plane")] or nodes
    work(folders.bin / "kind", "load", "docker-image", image, "--name", name, "--nodes", ",".join(workers), log=folders.log("kind-load"))


def are_all_ready(nodes: str) -> bool:
    """Tell whether all nodes are Ready, given `kubectl get nodes -o json`; no nodes is not ready."""
    items = json.loads(nodes)["items"]
    states = [condition["status"] for node in items for condition in node["status"]["conditions"] if condition["type"] == "Ready"]
    return len(items) > 0 and states.count("True") == len(items)


def _create(name: str, image: str, folders: Folders) -> None:
    options = ("--name", name, "--image", image, "--config", CONFIG, "--kubeconfig", folders.cluster(name) / "kubeconfig", "--wait", f"{READY_S}s")
    try:
        with step(f"making the kind cluster {name}"):
            work(folders.bin / "kind", "create", "cluster", *options, log=folders.log("kind-create"))
            _await_ready(folders.cluster(name), folders)
    except BaseException:
        say(f"the cluster {name} did not come up; deleting what there is of it")
        delete_kind_cluster(name, folders)
        raise


def _await_ready(folder: Path, folders: Folders) -> None:
    """Wait for all nodes: kind itself waits for the control plane's only."""
    kubectl = (folders.bin / "kubectl", "--kubeconfig", folder / "kubeconfig")
    work(*kubectl, "wait", "--for=condition=Ready", "nodes", "--all", f"--timeout={READY_S}s", log=folders.log("nodes-ready"))


def _marked(folder: Path) -> str:
    ready = folder / "ready"
    return ready.read_text() if ready.exists() else ""


def _known_to_kind(folders: Folders) -> list[str]:
    return attempt(folders.bin / "kind", "get", "clusters").stdout.split()


def _node_states(name: str) -> list[str]:
    return attempt("docker", "ps", "--all", "--filter", f"label=io.x-k8s.kind.cluster={name}", "--format", "{{.State}}").stdout.split()


def _works(name: str, folder: Path, folders: Folders) -> bool:
    if set(_node_states(name)) != {"running"}:
        return False
    kubectl = (folders.bin / "kubectl", "--kubeconfig", folder / "kubeconfig", "--request-timeout=5s")
    deadline_s = time.monotonic() + CHECK_S
    while time.monotonic() < deadline_s:
        answer = attempt(*kubectl, "get", "nodes", "--output=json", timeout_s=10)
        if answer.returncode == 0 and are_all_ready(answer.stdout):
            return True
        time.sleep(0.5)
    return False
