"""What can happen to a process that runs on a node of kind: it is killed, it freezes, the network cuts it off.

A node is a container of the Docker engine; all is done there, with the node's own tools, so Kubernetes hears of it as it would
of the real thing: not from us.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

from tests.cluster.processes import ask

NATS_PORTS: Final = (4222,)
API_PORTS: Final = (443, 6443)
"""Behind the Service of the API server, and as it listens."""


@dataclass(frozen=True, slots=True)
class NodeProcess:
    """The first process of a container, and its pod's network.

    Attributes:
        pid: as the node counts.
        sandbox_pid: of the process that holds the network of the pod, which outlives its containers.
    """

    node: str
    pid: int
    sandbox_pid: int

    def kill(self) -> float:
        """End the process as a crash would and return when, in unix seconds: at this moment it certainly was still there."""
        return float(self._run(f"date +%s.%N; kill -KILL {self.pid}"))

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop the process for the length of a `with` block; it does not notice."""
        self._run(f"kill -STOP {self.pid}")
        try:
            yield
        finally:
            self._run(f"kill -CONT {self.pid}")

    @contextmanager
    def cut_off(self, ports: Sequence[int]) -> Iterator[None]:
        """Drop every packet between the pod and these TCP ports for the length of a `with` block; nobody is told."""
        rules = [f"{chain} --protocol tcp {side} {port} --jump DROP" for port in ports for chain, side in (("OUTPUT", "--dport"), ("INPUT", "--sport"))]
        inserted: list[str] = []
        try:
            for rule in rules:
                self._filter(f"--insert {rule}")
                inserted.append(rule)
            yield
        finally:
            for rule in inserted:
                self._filter(f"--delete {rule}")

    def _filter(self, arguments: str) -> None:
        self._run(f"nsenter --target {self.sandbox_pid} --net iptables --wait {arguments}")

    def _run(self, script: str) -> str:
        return ask("docker", "exec", self.node, "sh", "-ec", script)


def find_process(pod: dict[str, Any]) -> NodeProcess:
    """Return the process of a pod's first container, which has to run."""
    node, container = pod["spec"]["nodeName"], pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    return _inspect(node, container)


def find_static_process(node: str, name: str) -> NodeProcess:
    """Return the process of a container that the kubelet runs by itself, such as kube-apiserver."""
    return _inspect(node, ask("docker", "exec", node, "crictl", "ps", "--quiet", "--name", f"^{name}$"))


def find_control_plane(nodes: dict[str, Any]) -> str:
    """Return the name of the node that runs the API server, from a list of all nodes."""
    name: str = next(node["metadata"]["name"] for node in nodes["items"] if "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"])
    return name


def _inspect(node: str, container: str) -> NodeProcess:
    info = json.loads(ask("docker", "exec", node, "crictl", "inspect", container))["info"]
    sandbox = json.loads(ask("docker", "exec", node, "crictl", "inspectp", info["sandboxID"]))["info"]
    return NodeProcess(node, info["pid"], sandbox["pid"])
