"""Every version that the cluster is made of, and why that one.

Checksums are Go's: `kube/go.sum` and `etcd/go.sum` for what we compile from our own modules, Go's checksum database for
`go install`. The published node image is pinned by digest because kind promises compatibility for that digest only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KUBERNETES: Final = "v1.36.3"
"""Of the self-built node; equal to kube/go.mod. The minor that the design's measurements were made on. Its patch version may
differ from the published image's: the API of a minor does not change."""

KIND: Final = "v0.33.0"
"""The release whose notes list node images of Kubernetes 1.34 to 1.37, the published one below among them."""

PUBLISHED_NODE_IMAGE: Final = "kindest/node:v1.36.4@sha256:099e049362a1526b2db71494e1947aae99bd16290d7c895f2b7ea312e3cbfaed"
"""The image that the release notes of kind v0.33.0 list for Kubernetes 1.36."""

DEBIAN: Final = "bookworm"
"""Debian 12: its systemd boots in a container on cgroup v1 and v2 (Debian 13's refuses v1), its Python is 3.11, the oldest we support."""

PYTHON_BASE_IMAGE: Final = "python:3.13-slim"
"""The Dockerfile's default base, where images can be pulled."""

DEBIAN_PYTHON_IMAGE: Final = "debian-python:3.11"
"""The base made from Debian's packages where they cannot."""

_NODE_PACKAGES: Final = (
    "systemd conntrack iptables nftables iproute2 ethtool util-linux mount kmod libseccomp2 pigz e2fsprogs bash ca-certificates curl jq procps"
    " containernetworking-plugins runc socat iputils-ping"
)

NODE_PACKAGES: Final = tuple(_NODE_PACKAGES.split())
"""The packages of kind's own base image, and from Debian what kind compiles: CNI plug-ins and runc. socat serves port-forward."""

PYTHON_PACKAGES: Final = ("ca-certificates", "python3", "python3-venv", "python3-pip")
"""A Python that can make a virtual environment, and the certificates a client needs."""


@dataclass(frozen=True, slots=True)
class Program:
    """One Go build.

    Attributes:
        source: a module path for `go install`, or the name of a folder beside this file with its own go.mod and go.sum.
        packages: import paths below `source`; the last element of each names the binary.
    """

    name: str
    version: str
    source: str
    packages: tuple[str, ...] = (".",)
    tags: str = ""
    minutes: int = 1

    @property
    def is_ours(self) -> bool:
        """Tell whether the module lies in this repository."""
        return "/" not in self.source


KIND_PROGRAM: Final = Program("kind", KIND, "sigs.k8s.io/kind")

HELM_PROGRAM: Final = Program("helm", "v3.22.0", "helm.sh/helm/v3", ("cmd/helm",), minutes=3)
"""Helm 3: charts of API version 2 install the same with Helm 3 and 4, and 3 is what most clusters' owners still run."""

KUBE_PROGRAM: Final = Program("kube", KUBERNETES, "kube", minutes=8)
"""All programs of Kubernetes in one binary: a third of the compile time and of the image's size of seven."""

ETCD_PROGRAM: Final = Program("etcd", "v3.6.16", "etcd")

NODE_PROGRAMS: Final = (
    KUBE_PROGRAM,
    ETCD_PROGRAM,
    Program("pause", "v1", "pause"),
    Program("crictl", "v1.34.0", "sigs.k8s.io/cri-tools", ("cmd/crictl",)),
    Program("coredns", "v1.12.4", "github.com/coredns/coredns", minutes=3),
    Program(
        "containerd",
        "v2.2.9",
        "github.com/containerd/containerd/v2",
        ("cmd/containerd", "cmd/ctr", "cmd/containerd-shim-runc-v2"),
        tags="no_aufs no_zfs no_btrfs no_devmapper",
        minutes=3,
    ),
)
"""What a node runs: versions that were tried together, on cgroup v1 and without CAP_SYS_RESOURCE, which is the hard case.
All of them build with `go install`, which refuses modules with replace directives; Kubernetes and etcd do not, hence our own
modules for them. containerd 2.2 still supports cgroup v1, with a warning."""
