"""Builds a kind node image from package registries alone: Go modules and Debian packages.

kind's published image holds Debian, systemd, containerd, kubeadm, kubelet and, already loaded into containerd, the images of
the control plane. All of it is made here again: programs with Go, the system with debootstrap, kind's own configuration files from
kind's Go module. The steps each end in something complete (a folder, an image with a label), so a run that is interrupted is
continued by the next. Only the last image is kept; the others are names in between.

What the environment forces, found by trial: see node/Dockerfile (CAP_SYS_RESOURCE), kind-config.yaml (cgroup v1) and
node/podnet (kindnet's image cannot be had).
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from .debian import LABEL, fingerprint, import_folder, is_made_from, make_image
from .folders import HERE, Folders
from .pins import DEBIAN, KIND, KIND_PROGRAM, KUBERNETES, NODE_PACKAGES, NODE_PROGRAMS
from .processes import ClusterError, ask, attempt, ended, step, work
from .programs import build_program, find_module
from .scratch import scratch_folder

NODE_BASE: Final = "aether/node-base:latest"
"""The node before the control plane's images are in it."""

BUILD_CONTAINER: Final = "aether-node-build"
"""The container in which containerd takes in the control plane's images; a left-over one is of a killed run."""

CONTAINERD_START_S: Final = 30.0
"""Seconds for containerd to answer in a fresh container; it takes 1 to 3."""

STOP_CONTAINERD: Final = "p=$(pidof containerd); kill $p; while kill -0 $p 2>/dev/null; do sleep 0.1; done; rm -rf /run/containerd"
"""Shell: containerd has to close its database before the file system is committed."""

NODE_SOURCES: Final = ("Dockerfile", "podnet", "default-cni.yaml", "default-storage.yaml")
"""The files in node/ that decide the image."""


def node_image_parts() -> str:
    """Return the fingerprint of all that decides the self-built node image."""
    ours = [path.read_bytes() for program in NODE_PROGRAMS if program.is_ours for path in sorted((HERE / program.source).iterdir()) if path.is_file()]
    programs = [f"{program.source} {program.version} {program.packages} {program.tags}" for program in (KIND_PROGRAM, *NODE_PROGRAMS)]
    return fingerprint(DEBIAN, *NODE_PACKAGES, *programs, *ours, *((HERE / "node" / name).read_bytes() for name in NODE_SOURCES))


def build_node_image(image: str, made_from: str, folders: Folders) -> None:
    """Make the node image, step by step; about 20 minutes on 2 cores from nothing, 2 once the programs are built.

    Raises:
        ClusterError: a step failed; the next run continues there.
    """
    programs = {program.name: build_program(program, folders) for program in NODE_PROGRAMS}
    debian = _ensure_debian(folders)
    with step("assembling the node image"), scratch_folder(folders.work, "node") as scratch:
        images = _make_images(programs, debian, scratch, folders)
        try:
            _build_base(programs, debian, images, scratch, folders)
            _load_images(images, image, made_from, folders)
        finally:
            # names of a registry that these never came from, and of a step in between
            attempt("docker", "rmi", "--no-prune", *images.values(), NODE_BASE)


def _ensure_debian(folders: Folders) -> str:
    made_from = fingerprint(DEBIAN, *NODE_PACKAGES)
    image = f"aether/debian-node:{made_from}"
    if not is_made_from(image, made_from):
        with step("unpacking Debian for the node"):
            make_image(image, NODE_PACKAGES, made_from, folders)
    return image


def _make_images(programs: Mapping[str, Path], debian: str, scratch: Path, folders: Folders) -> dict[str, str]:
    """Make the control plane's images; returns the full name of each, by the last part of its name."""
    names = _image_names(programs["kube"] / "kube", scratch)
    kube = _layer(scratch / "kube", {"usr/local/bin/kube-apiserver": programs["kube"] / "kube"})
    for name in ("kube-controller-manager", "kube-scheduler"):
        (kube / "usr/local/bin" / name).symlink_to("kube-apiserver")
    _import(names["kube-apiserver"], kube, "ENV PATH=/usr/local/bin")
    for name in ("kube-controller-manager", "kube-scheduler"):
        ask("docker", "tag", names["kube-apiserver"], names[name])
    for name, path in (("etcd", "usr/local/bin/etcd"), ("coredns", "coredns"), ("pause", "pause")):
        _import(names[name], _layer(scratch / name, {path: programs[name] / name}), f'ENTRYPOINT ["/{path}"]')
    proxy = _layer(scratch / "proxy", {"kube-proxy": programs["kube"] / "kube"})
    (proxy / "Dockerfile").write_text(f"FROM {debian}\nCOPY kube-proxy /usr/local/bin/kube-proxy\n")
    work("docker", "build", "--tag", names["kube-proxy"], proxy, log=folders.log("kube-proxy"))
    return names


def _image_names(kube: Path, scratch: Path) -> dict[str, str]:
    """Ask kubeadm which images it will want, in which versions: ours carry those names whatever is inside."""
    kubeadm = scratch / "kubeadm"
    kubeadm.symlink_to(kube)
    listed = ask(kubeadm, "config", "images", "list", "--kubernetes-version", KUBERNETES).split()
    return {name.rpartition("/")[2].partition(":")[0]: name for name in listed}


def _layer(folder: Path, files: Mapping[str, Path]) -> Path:
    (folder / "tmp").mkdir(parents=True)
    for name, source in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, folder / name)
    return folder


def _import(image: str, folder: Path, change: str) -> None:
    import_folder(image, folder, labels={}, changes=(change,))


def _build_base(programs: Mapping[str, Path], debian: str, images: Mapping[str, str], scratch: Path, folders: Folders) -> None:
    context = scratch / "context"
    shutil.copytree(find_module("sigs.k8s.io/kind", KIND) / "images/base/files", context / "kind", copy_function=shutil.copyfile)
    _make_writable(context)
    binaries = {f"usr/local/bin/{path.name}": path for name in ("containerd", "crictl") for path in sorted(programs[name].iterdir())}
    _layer(context / "programs", {**binaries, "usr/bin/kube": programs["kube"] / "kube"})
    (context / "manifests").mkdir()
    network = (HERE / "node/default-cni.yaml").read_text().replace("KUBE_PROXY_IMAGE", images["kube-proxy"])
    (context / "manifests/default-cni.yaml").write_text(network)
    shutil.copyfile(HERE / "node/default-storage.yaml", context / "manifests/default-storage.yaml")
    shutil.copyfile(HERE / "node/podnet", context / "podnet")
    arguments = {"DEBIAN_NODE": debian, "KUBERNETES": KUBERNETES, "PAUSE_IMAGE": images["pause"]}
    options = [word for name, value in arguments.items() for word in ("--build-arg", f"{name}={value}")]
    work("docker", "build", "--tag", NODE_BASE, *options, "--file", HERE / "node/Dockerfile", context, log=folders.log("node-base"))


def _make_writable(folder: Path) -> None:
    """Undo the read-only modes of Go's module cache, which copying keeps for folders."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def _load_images(images: Mapping[str, str], image: str, made_from: str, folders: Folders) -> None:
    attempt("docker", "rm", "--force", "--volumes", BUILD_CONTAINER)
    options = ("--privileged", "--security-opt", "seccomp=unconfined", "--tmpfs", "/tmp", "--entrypoint", "sleep")
    try:
        ask("docker", "run", "--detach", "--name", BUILD_CONTAINER, *options, NODE_BASE, "infinity")
        ask("docker", "exec", "--detach", BUILD_CONTAINER, "containerd", "-l", "error")
        _await_containerd()
        _import_into_containerd(images, folders)
        ask("docker", "exec", BUILD_CONTAINER, "sh", "-c", STOP_CONTAINERD)
        changes = (f"LABEL {LABEL}={made_from}", 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]', "CMD []")
        ask("docker", "commit", *(word for change in changes for word in ("--change", change)), BUILD_CONTAINER, image, timeout_s=600)
    finally:
        attempt("docker", "rm", "--force", "--volumes", BUILD_CONTAINER)


def _await_containerd() -> None:
    deadline_s = time.monotonic() + CONTAINERD_START_S
    while attempt("docker", "exec", BUILD_CONTAINER, "ctr", "version").returncode != 0:
        if time.monotonic() > deadline_s:
            raise ClusterError("containerd does not answer in the container that the node image is made in")
        time.sleep(0.3)


def _import_into_containerd(images: Mapping[str, str], folders: Folders) -> None:
    save = subprocess.Popen(["docker", "save", *images.values()], stdout=subprocess.PIPE)
    take_in = ("ctr", "-n", "k8s.io", "images", "import", "--all-platforms", "--digests", "--snapshotter=overlayfs", "-")
    with ended(save):
        work("docker", "exec", "--interactive", BUILD_CONTAINER, *take_in, stdin=save.stdout, log=folders.log("images"))
        if save.wait() != 0:
            raise ClusterError("docker save of the control plane's images failed")
