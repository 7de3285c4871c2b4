"""The passwords that the chart makes for NATS: an upgrade, which finds them in the cluster, keeps them."""

from __future__ import annotations

import base64
import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.helm.program import find_helm

CHART = Path(__file__).parents[3] / "helm" / "aether"
RESOURCES = {"kind": "APIResourceList", "groupVersion": "v1", "resources": [{"name": "secrets", "namespaced": True, "kind": "Secret", "verbs": ["get"]}]}


@contextmanager
def serving(secrets: dict[str, str]) -> Iterator[str]:
    """Answer what helm asks of an API server in which these Secrets hold these passwords."""
    found: dict[str, Any] = {"/api/v1": RESOURCES}
    for name, password in secrets.items():
        data = {"password": base64.b64encode(password.encode()).decode()}
        found[f"/api/v1/namespaces/aether-system/secrets/{name}"] = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": "aether-system"}, "data": data}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = found.get(self.path.partition("?")[0])
            body = json.dumps(answer or {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "NotFound", "code": 404}).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def render_passwords(url: str) -> dict[tuple[str, str], str]:
    """Return the password in each Secret, by its namespace and name, as an upgrade in a cluster would write it."""
    helm = find_helm()
    if helm is None:
        pytest.skip("helm is not there: `make cluster` builds it")
    command = [helm, "template", "aether", str(CHART), "--namespace=aether-system", "--kube-version=1.36.0", "--dry-run=server", f"--kube-apiserver={url}"]
    command += ["--set=nats.users.enabled=true,pool.namespaces={shop}", "--show-only=templates/nats-users.yaml"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    documents = [document for document in yaml.safe_load_all(result.stdout) if document]
    return {(document["metadata"].get("namespace", ""), document["metadata"]["name"]): document["stringData"]["password"] for document in documents}


def test_an_upgrade_keeps_the_passwords_and_makes_those_that_are_missing() -> None:
    with serving({"aether-nats-runtime": "pKept"}) as url:
        passwords = render_passwords(url)
    assert [passwords[namespace, "aether-nats-runtime"] for namespace in ("shop", "aether-system")] == ["pKept", "pKept"]
    with serving({"aether-nats-operator": passwords["", "aether-nats-operator"], "aether-nats-runtime": "pKept"}) as url:
        assert render_passwords(url) == passwords
