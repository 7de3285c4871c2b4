"""The external metrics API, served from this host to a cluster of kind: what an adapter of Prometheus would tell, read from the pods themselves."""

from __future__ import annotations

import json
import re
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, Final

from tests.cluster.processes import ask
from tests.e2e.bank import Bank
from tests.histories.json_api import build_json_handler

API: Final = "external.metrics.k8s.io"
PATH: Final = f"/apis/{API}/v1beta1"
SERVICE: Final = "metrics-from-outside"


@contextmanager
def metrics_api(bank: Bank, folder: Path) -> Iterator[None]:
    """Serve every metric of the pool's pods, summed, for the length of a `with` block."""
    host = _host_address()
    certificate, key = folder / "cert.pem", folder / "key.pem"
    ask("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={SERVICE}", "-out", certificate, "-keyout", key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer((host, 0), build_json_handler(partial(_answer, bank), {})) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = Thread(target=server.serve_forever, name="metrics API")
        thread.start()
        documents = _build_documents(bank.namespace, host, server.server_port)
        try:
            bank.apply(*documents)
            yield
        finally:
            for document in documents:
                bank.kubectl("delete", "--ignore-not-found", document["kind"], document["metadata"]["name"])
            server.shutdown()
            thread.join()


def read_sum(bank: Bank, metric: str) -> float:
    """Return a metric of the pool's pods, summed over them and its labels."""
    names = [pod["metadata"]["name"] for pod in bank.pods()]
    texts = [bank.kubectl("get", "--raw", f"/api/v1/namespaces/{bank.namespace}/pods/{name}:8080/proxy/metrics", check=False) for name in names]
    return sum(float(value) for text in texts for value in re.findall(rf"^{metric}(?:{{.*}})? ([0-9.e+]+)$", text, re.MULTILINE))


def _host_address() -> str:
    """Return the address by which the nodes reach this host."""
    networks = json.loads(ask("docker", "network", "inspect", "kind"))[0]["IPAM"]["Config"]
    address: str = next(network["Gateway"] for network in networks if "." in network.get("Gateway", ""))
    return address


def _answer(bank: Bank, path: str) -> dict[str, Any] | None:
    if path == PATH:
        return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": f"{API}/v1beta1", "resources": []}
    metric = path.removeprefix(f"{PATH}/namespaces/{bank.namespace}/")
    if metric == path:
        return None
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    item = {"metricName": metric, "metricLabels": {}, "timestamp": now, "value": f"{read_sum(bank, metric):g}"}
    return {"kind": "ExternalMetricValueList", "apiVersion": f"{API}/v1beta1", "metadata": {}, "items": [item]}


def _build_documents(namespace: str, host: str, port: int) -> list[dict[str, Any]]:
    """Return what makes the API server pass the metrics API on to us: a Service that stands for this host."""
    metadata = {"name": SERVICE, "namespace": namespace}
    return [
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": [{"name": "https", "port": 443, "targetPort": port}]}},
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {**metadata, "labels": {"kubernetes.io/service-name": SERVICE}},
            "addressType": "IPv4",
            "ports": [{"name": "https", "port": port}],
            "endpoints": [{"addresses": [host]}],
        },
        {
            "apiVersion": "apiregistration.k8s.io/v1",
            "kind": "APIService",
            "metadata": {"name": f"v1beta1.{API}"},
            "spec": {
                "group": API,
                "version": "v1beta1",
                "groupPriorityMinimum": 100,
                "versionPriority": 100,
                "insecureSkipTLSVerify": True,
                "service": {"name": SERVICE, "namespace": namespace},
            },
        },
    ]
