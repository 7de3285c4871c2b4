"""The passwords that the chart makes for NATS: an upgrade, which finds them in the cluster, keeps them."""

from __future__ import annotations

import base64
from contextlib import AbstractContextManager
from typing import Any

import yaml

from tests.unit.helm.api import NAMESPACE, render, serving


def holding(secrets: dict[str, str]) -> AbstractContextManager[str]:
    """Serve an API in which these Secrets hold these passwords."""
    found: dict[str, Any] = {}
    for name, password in secrets.items():
        data = {"password": base64.b64encode(password.encode()).decode()}
        found[f"/api/v1/namespaces/{NAMESPACE}/secrets/{name}"] = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": NAMESPACE}, "data": data}
    return serving(found)


def render_passwords(url: str) -> dict[tuple[str, str], str]:
    """Return the password in each Secret, by its namespace and name, as an upgrade in a cluster would write it."""
    result = render(url, ["--set=nats.users.enabled=true,pool.namespaces={shop}", "--show-only=templates/nats-users.yaml"])
    assert result.returncode == 0, result.stderr
    documents = [document for document in yaml.safe_load_all(result.stdout) if document]
    return {(document["metadata"].get("namespace", ""), document["metadata"]["name"]): document["stringData"]["password"] for document in documents}


def test_an_upgrade_keeps_the_passwords_and_makes_those_that_are_missing() -> None:
    with holding({"aether-nats-runtime": "pKept"}) as url:
        passwords = render_passwords(url)
    assert [passwords[namespace, "aether-nats-runtime"] for namespace in ("shop", "aether-system")] == ["pKept", "pKept"]
    with holding({"aether-nats-operator": passwords["", "aether-nats-operator"], "aether-nats-runtime": "pKept"}) as url:
        assert render_passwords(url) == passwords
