"""What the benches of the operator read and count, without an API server."""

from __future__ import annotations

import json
from pathlib import Path

from aether_kube.documents import JsonObject
from bench.audit import Audit, count_writes
from bench.failover import count_moved
from bench.kube_stage import SeenActor
from bench.stand_in import build_pod, read_environment

TEMPLATE: JsonObject = {
    "metadata": {"labels": {"aether.flowmade.one/pool": "default"}},
    "spec": {
        "serviceAccountName": "aether-runtime",
        "containers": [
            {
                "name": "runtime",
                "env": [{"name": "AETHER_POD_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}, {"name": "AETHER_POOL", "value": "default"}],
            }
        ],
    },
}


def line_of(user: str, verb: str, resource: str, subresource: str = "") -> bytes:
    return json.dumps({"user": {"username": user}, "verb": verb, "objectRef": {"resource": resource, "subresource": subresource}, "responseStatus": {"code": 200}}).encode()


def test_an_audit_is_read_on_from_where_it_was_left_also_in_the_middle_of_a_line(tmp_path: Path) -> None:
    path, audit = tmp_path / "audit.log", Audit(tmp_path / "audit.log")
    first, second = line_of("operator-0", "patch", "actors", "status"), line_of("operator-0", "create", "events")

    path.write_bytes(first + b"\n" + second[:10])
    read = [call.resource for call in audit.read_new()]
    path.write_bytes(first + b"\n" + second + b"\n")

    assert (read, [call.resource for call in audit.read_new()], audit.read_new()) == (["actors/status"], ["events"], [])


def test_only_writes_of_the_operator_and_of_pods_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    users = ("operator-0", "operator-1", "system:serviceaccount:bench:aether-runtime", "admin", "system:apiserver")
    path.write_bytes(b"".join(line_of(user, verb, "actors", "status") + b"\n" for user in users for verb in ("patch", "get", "watch")))

    assert count_writes(Audit(path).read_new(), "actors/status") == 3


def test_a_pod_is_told_what_its_template_says_with_the_fields_of_the_pod_filled_in() -> None:
    pod = build_pod("p", TEMPLATE)
    metadata = pod["metadata"]
    assert isinstance(metadata, dict)
    metadata["uid"] = "u"

    assert read_environment(pod) == {"AETHER_POD_UID": "u", "AETHER_POOL": "default"}
    assert metadata["labels"] == {"aether.flowmade.one/pool": "default", "pod-template-hash": "bench"}


def test_an_actor_counts_as_moved_when_its_pod_or_its_epoch_is_another_one_and_it_was_not_on_a_lost_pod() -> None:
    before = {name: SeenActor(True, "pod-a", "a", 1, 0) for name in ("stays", "moves", "told anew", "was lost")}
    after = {
        "stays": SeenActor(False, "pod-a", "a", 1, 7),
        "moves": SeenActor(True, "pod-b", "b", 2, 0),
        "told anew": SeenActor(True, "pod-a", "a", 2, 0),
        "was lost": SeenActor(True, "pod-b", "b", 2, 0),
        "came later": SeenActor(True, "pod-b", "b", 2, 0),
    }

    assert count_moved(before, after, ["was lost"]) == 2
