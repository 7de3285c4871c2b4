"""Gives a run its cluster and takes it back: engine, tools, node image and kind cluster in the right order.

Order of choice: the cluster that the user names in KUBECONFIG; else kind. A KUBECONFIG that points at a cluster made here (what
`up` printed, exported by a person) counts as kind, so that images can be loaded into it.

A run that uses a kind cluster holds a lease on it. `release_cluster` deletes the cluster when the last lease is gone, unless a person
asked to keep it, then stops the engine if that was started here and nothing runs in it.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from .cluster import Cluster
from .debian import LABEL
from .engine import Engine, ensure_engine, is_answering, release_engine, remove_state
from .folders import Folders, find_folders
from .kind import delete_kind_cluster, ensure_kind_cluster, is_kept, load_into_kind, mark_kept
from .locks import exclusive, last_user, take_lease
from .node_image import ensure_node_image
from .processes import ClusterError, ask, attempt, say, step
from .tools import ensure_tools

NAME: Final = "aether"
"""The kind cluster that tests and demos share unless they name another one."""

NAME_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?")
"""A part of host names (`<name>-control-plane`) and of paths."""

IMAGE_VARIABLE: Final = "AETHER_TEST_IMAGE"
"""The environment variable with the image to use in a cluster that the user named: nothing can be loaded into that one."""

REQUIRE_VARIABLE: Final = "AETHER_REQUIRE_CLUSTER"
"""The environment variable that is 1 where a missing Kubernetes, or a part of it, must fail the tests instead of skipping them, as CI does."""


def is_required(environment: Mapping[str, str]) -> bool:
    """Tell whether tests may not skip for want of a Kubernetes."""
    return environment.get(REQUIRE_VARIABLE) == "1"


def ensure_cluster(name: str = NAME, *, keep: bool = False) -> Cluster:
    """Return a cluster that works: the user's KUBECONFIG, else a kind cluster, made now unless it is there.

    Idempotent. `keep` lets a kind cluster outlive `release_cluster`. Cancelled by Ctrl-C it leaves nothing that the next run trusts.

    Raises:
        ClusterError: with what to install, start or change.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise ClusterError(f"{name!r} cannot be a cluster's name: small letters, digits and inner hyphens, at most 32")
    folders = find_folders()
    named = named_kubeconfig(os.environ)
    if named is not None and not is_made_here(named, folders):
        return _use_named(named, folders)
    return _ensure_kind(named.parent.name if named is not None else name, folders, keep=keep)


def release_cluster(cluster: Cluster) -> None:
    """Give a cluster back; delete it if it was made here, nobody else uses it and nobody asked to keep it."""
    if not cluster.is_kind or cluster.lease is None or cluster.engine is None:
        return
    folders = find_folders()
    cluster.lease.close()
    with _alone(cluster.name, folders) as is_last:
        if is_last and not is_kept(cluster.name, folders) and folders.cluster(cluster.name).exists():
            with step(f"deleting the kind cluster {cluster.name}"):
                delete_kind_cluster(cluster.name, folders)
    release_engine(cluster.engine, folders)


def load_image(cluster: Cluster, image: str) -> str:
    """Make an image usable in a cluster; return the name under which its pods find it.

    Raises:
        ClusterError: the user named the cluster, and no image that it can pull.
    """
    if cluster.is_kind:
        with step(f"loading {image} into {cluster.name}"):
            load_into_kind(cluster.name, image, find_folders())
        return image
    pulled = os.environ.get(IMAGE_VARIABLE, "")
    if not pulled:
        raise ClusterError(
            f"{image} cannot be loaded into a cluster that KUBECONFIG names: push it to a registry from which {cluster.name} pulls,"
            f" for example `docker tag {image} REGISTRY/aether:dev && docker push REGISTRY/aether:dev`, and set {IMAGE_VARIABLE}=REGISTRY/aether:dev"
        )
    return pulled


def remove_cluster(name: str, *, unless_kept: bool = False) -> None:
    """Delete a kind cluster that was made here, even one in use; stop an engine that was started here and is idle."""
    folders = find_folders()
    if not folders.cluster(name).exists() or (unless_kept and is_kept(name, folders)):
        return
    with engine_for_a_while(folders):
        ensure_tools(folders)
        with exclusive(folders.lock(f"cluster-{name}"), f"the cluster {name}"), step(f"deleting the kind cluster {name}"):
            delete_kind_cluster(name, folders)


def clean(*, everything: bool = False) -> None:
    """Delete all kind clusters made here and stop an engine started here; with `everything` also images, caches and the engine's state."""
    folders = find_folders()
    names = folders.cluster_names()
    if names or is_answering():
        with engine_for_a_while(folders):
            for name in names:
                remove_cluster(name)
            if everything:
                _remove_images()
    if everything:
        remove_state(folders)
        say(f"removing {folders.cache}")
        shutil.rmtree(folders.cache, ignore_errors=True)


def named_kubeconfig(environment: Mapping[str, str]) -> Path | None:
    """Return the kubeconfig file that the user names, None if there is none.

    Raises:
        ClusterError: KUBECONFIG is a list or names no file.
    """
    value = environment.get("KUBECONFIG", "")
    if not value:
        return None
    if os.pathsep in value or not Path(value).is_file():
        raise ClusterError(f"KUBECONFIG={value}: name one existing file, or unset it to get a kind cluster")
    return Path(value).resolve()


def is_made_here(kubeconfig: Path, folders: Folders) -> bool:
    """Tell whether a kubeconfig belongs to a kind cluster that was made here."""
    return kubeconfig.name == "kubeconfig" and kubeconfig.parent.parent == folders.cluster("any").parent.resolve()


@contextmanager
def engine_for_a_while(folders: Folders) -> Iterator[Engine]:
    """Hold an engine for a block; one that was started here ends with it unless something else needs it."""
    engine = ensure_engine(folders)
    try:
        yield engine
    finally:
        release_engine(engine, folders)


def _use_named(kubeconfig: Path, folders: Folders) -> Cluster:
    tools = ensure_tools(folders)
    context = ask(tools / "kubectl", "--kubeconfig", kubeconfig, "config", "current-context")
    cluster = Cluster(kubeconfig, context, tools, is_kind=False)
    server = cluster.kubectl("config", "view", "--minify", "--output=jsonpath={.clusters[0].cluster.server}").stdout
    say(f"using the cluster that KUBECONFIG names: context {context}, {server}")
    cluster.kubectl("get", "--raw=/readyz", "--request-timeout=20s")
    return cluster


def _ensure_kind(name: str, folders: Folders, *, keep: bool) -> Cluster:
    engine = ensure_engine(folders)
    try:
        tools = ensure_tools(folders)
        image = ensure_node_image(folders)
        with exclusive(folders.lock(f"cluster-{name}"), f"the cluster {name}"):
            kubeconfig = ensure_kind_cluster(name, image, folders)
            mark_kept(name, folders, is_kept=keep)
            lease = take_lease(folders.lock(f"cluster-{name}.used"))
    except BaseException:
        release_engine(engine, folders)
        raise
    return Cluster(kubeconfig, name, tools, is_kind=True, engine=engine, lease=lease)


@contextmanager
def _alone(name: str, folders: Folders) -> Iterator[bool]:
    with exclusive(folders.lock(f"cluster-{name}"), f"the cluster {name}"), last_user(folders.lock(f"cluster-{name}.used")) as is_last:
        yield is_last


def _remove_images() -> None:
    images = attempt("docker", "images", "--quiet", "--filter", f"label={LABEL}").stdout.split()
    if images:
        with step("removing the images that were made here"):
            attempt("docker", "rmi", "--force", *sorted(set(images)))
