"""Gives every test a real Kubernetes: the cluster that KUBECONFIG names, else kind, else kind on a node image built here.

    lifecycle    which cluster, and its whole life          __main__    the same for people and make
    engine       the Docker engine                          tools       kind, kubectl, helm
    node_image   the node image: pulled or built            node_build  building it from package registries alone
    kind         one kind cluster                           image       the image of Aether itself
    cluster      what a test holds in its hands          control_plane  etcd and an API server alone, without Docker

What is made is cached and checked before it is used again, and what is half-made is never trusted; what is started is
ended when its last user is gone, unless a person asked to keep it.
"""

from __future__ import annotations

from .cluster import Cluster
from .image import ensure_image
from .lifecycle import ensure_cluster, load_image, release_cluster
from .processes import ClusterError

__all__ = ["Cluster", "ClusterError", "ensure_cluster", "ensure_image", "load_image", "release_cluster"]
