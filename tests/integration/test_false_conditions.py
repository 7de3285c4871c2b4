"""A real API server lets go of conditions that somebody else put into an Actor's status, when its pod reports without them."""

from __future__ import annotations

from aether_api.v1alpha1 import Actor, ActorPhase
from aether_kube.client import KubeClient
from aether_kube.documents import JsonObject, JsonValue, objects_at, text_at, value_at
from aether_kube.kinds import ACTORS
from aether_runtime.adapters.kubernetes import KubernetesSink, build_desired, build_shown
from aether_runtime.ports import ActorReport
from tests.integration.bare_plane import add_actor, bare_plane

PATH = ACTORS.path("default", "alice")
FALSE: JsonObject = {"type": "Quarantined", "status": "True", "reason": "Theirs", "message": "", "observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}
SCHEDULED: JsonObject = {**FALSE, "type": "Scheduled"}


async def add_false_condition(client: KubeClient, *, by_apply: bool) -> None:
    """Put a condition of a pod beside those that are there, by another manager."""
    if by_apply:
        await client.apply(f"{PATH}/status", {**ACTORS.document("default", "alice"), "status": {"conditions": [FALSE, SCHEDULED]}}, field_manager="applying")
    else:
        conditions: list[JsonValue] = [*objects_at(await client.get(PATH), "status", "conditions"), FALSE]
        await client.patch_merge(f"{PATH}/status", {"status": {"conditions": conditions}}, field_manager="editing")


async def test_a_condition_of_another_manager_is_gone_after_one_report_and_stays_gone() -> None:
    async with bare_plane() as client:
        report = ActorReport(build_desired(Actor.model_validate(await add_actor(client))), ActorPhase.READY, 3, 0, "account@x", "Ready")
        sink = KubernetesSink(client)
        for by_apply in (True, False):
            await sink.write(report)
            await add_false_condition(client, by_apply=by_apply)

            first = await sink.write(report)
            second = await sink.write(report)

            shown = await client.get(PATH)
            assert {text_at(condition, "type") for condition in objects_at(shown, "status", "conditions")} == {"Ready", "Replayed", "Scheduled"}
            assert report.agrees_with(build_shown(Actor.model_validate(shown)))
            assert (first, value_at(shown, "metadata", "resourceVersion")) == (second, str(second))
