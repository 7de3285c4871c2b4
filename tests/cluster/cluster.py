"""A cluster as a test sees it: a kubeconfig file of its own, and kubectl and helm that look at nothing else.

No call relies on a current context that somebody else may switch: every one names the kubeconfig file.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from .engine import Engine
from .locks import Lease
from .processes import ClusterError, attempt

CALL_S: Final = 120.0
"""Seconds for one call of kubectl or helm unless the caller waits for something longer."""

TYPES_S: Final = 60.0
"""Seconds until CRDs are served: one or two on an idle API server."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """A Kubernetes cluster that answers.

    Attributes:
        kubeconfig: the file that names it and nothing else.
        name: kind's name of it, or the context in a kubeconfig that the user named.
        tools: the folder that holds kind, kubectl and helm; put it in front of PATH.
        is_kind: made here with kind, so images are loaded into it and it may be deleted.
    """

    kubeconfig: Path
    name: str
    tools: Path
    is_kind: bool
    engine: Engine | None = field(default=None, repr=False)
    lease: Lease | None = field(default=None, repr=False)

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = CALL_S) -> subprocess.CompletedProcess[str]:
        """Run kubectl on this cluster.

        Raises:
            ClusterError: it failed and `check` is set; the message holds what it said.
        """
        return self._call("kubectl", arguments, stdin=stdin, check=check, timeout_s=timeout_s)

    def helm(self, *arguments: str, stdin: str | None = None, check: bool = True, timeout_s: float = CALL_S) -> subprocess.CompletedProcess[str]:
        """Run helm on this cluster.

        Raises:
            ClusterError: it failed and `check` is set; the message holds what it said.
        """
        return self._call("helm", arguments, stdin=stdin, check=check, timeout_s=timeout_s)

    def apply_types(self, folder: Path) -> None:
        """Apply a folder of CRDs and wait until the API server serves them.

        Raises:
            ClusterError: it does not within a minute.
        """
        self.kubectl("apply", "--server-side", "--force-conflicts", f"--filename={folder}")
        deadline = time.monotonic() + TYPES_S
        # Right after the apply a CRD has no conditions yet, and `kubectl wait` fails at once on that; so it is asked again.
        while self.kubectl("wait", "--for=condition=Established", f"--filename={folder}", "--timeout=10s", check=False).returncode != 0:
            if time.monotonic() > deadline:
                raise ClusterError(f"the CRDs of {folder} are not served after {TYPES_S:g} s; see `kubectl describe crds`")
            time.sleep(0.5)

    def command(self, tool: str, *arguments: str) -> list[str]:
        """Return the words of a call, for a caller that runs it in the background (`kubectl get -w`, `port-forward`)."""
        return [str(self.tools / tool), "--kubeconfig", str(self.kubeconfig), *arguments]

    def node_addresses(self) -> tuple[str, ...]:
        """Return the nodes' internal addresses, workers first; with kind on Linux, a NodePort on them answers this host (not on Docker Desktop)."""
        nodes = json.loads(self.kubectl("get", "nodes", "--output=json").stdout)["items"]
        workers_first = sorted(nodes, key=lambda node: "node-role.kubernetes.io/control-plane" in node["metadata"]["labels"])
        return tuple(one["address"] for node in workers_first for one in node["status"]["addresses"] if one["type"] == "InternalIP")

    def _call(self, tool: str, arguments: Sequence[str], *, stdin: str | None, check: bool, timeout_s: float) -> subprocess.CompletedProcess[str]:
        result = attempt(*self.command(tool, *arguments), stdin=stdin, timeout_s=timeout_s)
        if check and result.returncode != 0:
            raise ClusterError(f"{tool} {' '.join(arguments)} failed ({result.returncode}):\n{result.stderr.strip() or result.stdout.strip()}")
        return result
