"""Answers what helm asks of an API server while it renders a chart for a cluster."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.histories.json_api import build_json_handler
from tests.unit.helm.program import find_helm

CHART = Path(__file__).parents[3] / "helm" / "aether"
NAMESPACE = "aether-system"
RBAC = "rbac.authorization.k8s.io/v1"
KINDS: dict[str, dict[str, tuple[str, bool]]] = {
    "/api/v1": {"secrets": ("Secret", True)},
    f"/apis/{RBAC}": {"clusterroles": ("ClusterRole", False), "roles": ("Role", True)},
}
"""The kinds that the chart looks up: by the path of their group, their names, and whether they are namespaced."""

NOT_FOUND = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}


@contextmanager
def serving(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Answer with these documents, by path, with what kinds there are, and for the rest that it is not found."""

    with ThreadingHTTPServer(("127.0.0.1", 0), build_json_handler(lambda path: found.get(path) or _list_kinds(path), NOT_FOUND)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def _list_kinds(path: str) -> dict[str, Any] | None:
    if path not in KINDS:
        return None
    kinds = [{"name": name, "kind": kind, "namespaced": namespaced, "verbs": ["get", "list"]} for name, (kind, namespaced) in KINDS[path].items()]
    return {"kind": "APIResourceList", "groupVersion": path.removeprefix("/apis/").removeprefix("/api/"), "resources": kinds}


def render(url: str, words: Sequence[str], *, release: str = "aether") -> subprocess.CompletedProcess[str]:
    """Render the chart as an installation in a cluster would."""
    helm = find_helm()
    if helm is None:
        pytest.skip("helm is not there: `make cluster` builds it")
    command = [helm, "template", release, str(CHART), f"--namespace={NAMESPACE}", "--kube-version=1.36.0", "--dry-run=server", f"--kube-apiserver={url}"]
    return subprocess.run([*command, *words], capture_output=True, text=True, check=False)
