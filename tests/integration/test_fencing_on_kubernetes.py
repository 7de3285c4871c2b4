"""The API server takes the status of an Actor from its pod and from the operator alone, and JetStream its events from its pod alone."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

import pytest

from aether_api.errors import KubeForbidden, KubeInvalid, RetryableError
from aether_api.identity import ActorId, Epoch, PodUid, parse_actor_id
from aether_api.v1alpha1 import Actor, ActorModel, ActorPhase
from aether_kube.documents import JsonObject
from aether_kube.kinds import ACTORS
from aether_nats.embedded import EmbeddedServer
from aether_operator.cluster.records import parse_actor
from aether_operator.cluster.statuses import MANAGER, build_status_document
from aether_operator.planning.snapshot import Placed
from aether_operator.planning.statuses import build_placed_status, build_unplaced_status, suspended
from aether_runtime import reporter, unshown
from aether_runtime.adapters.kubernetes import KubernetesSink, KubernetesSource, build_desired
from aether_runtime.ports import ActorReport, DesiredActor, DesiredListener, Home, ShownStatus
from tests.cluster.cluster import Cluster
from tests.histories.bank import FOLDER
from tests.histories.bound_pods import Fenced, Writer, calling, fenced_namespace, is_ready, running, send
from tests.histories.cluster import connected, open_journal, until
from tests.histories.invariants import check_log, read_history

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def fenced(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fenced]:
    with fenced_namespace(cluster, tmp_path_factory.mktemp("kubeconfigs")) as found:
        found.kubectl("apply", f"--filename={FOLDER / '10-account-model.yaml'}")
        yield found


@pytest.fixture
def name(fenced: Fenced) -> str:
    """The name of an Actor that is there."""
    name = f"a-{secrets.token_hex(4)}"
    document = {"apiVersion": "aether.flowmade.one/v1alpha1", "kind": "Actor", "metadata": {"name": name}, "spec": {"model": "account"}}
    fenced.kubectl("create", "--filename=-", stdin=json.dumps(document))
    return name


@pytest.fixture(scope="module")
def pods(fenced: Fenced) -> tuple[Writer, Writer]:
    return fenced.add_pod("pod-a"), fenced.add_pod("pod-b")


async def place(fenced: Fenced, name: str, pod: Writer | None, epoch: int, *, by: Writer | None = None) -> None:
    """Write a placement as the operator does, with its own token unless somebody else shall try."""
    path = ACTORS.path(fenced.namespace, name)
    async with calling(by or fenced.operator) as client:
        view = parse_actor(await client.get(path))
        placed = Placed(pod.name, pod.uid, Epoch(epoch)) if pod is not None else Placed("", PodUid(""), Epoch(epoch))
        status = build_placed_status(view, placed, "Scheduled") if pod is not None else build_unplaced_status(view, placed, suspended())
        await client.apply(f"{path}/status", build_status_document(view, status, now=datetime.now(UTC)), field_manager=MANAGER)


async def report(fenced: Fenced, name: str, pod: Writer, epoch: int, *, version: int = 3) -> None:
    """Write a report as a pod does that believes to hold the actor since an epoch."""
    desired = replace(build_desired(Actor.model_validate(fenced.read(name))), epoch=Epoch(epoch))
    async with calling(pod) as client:
        await KubernetesSink(client).write(ActorReport(desired, ActorPhase.READY, version, 0, "account@x", "Ready", "serving"))


async def test_the_operator_places_an_actor_and_its_pod_reports_it(fenced: Fenced, name: str, pods: tuple[Writer, Writer]) -> None:
    await place(fenced, name, pods[0], 5)

    await report(fenced, name, pods[0], 5)

    status = fenced.read(name)["status"]
    assert (status["phase"], status["version"], status["reportedEpoch"]) == ("Ready", 3, 5)
    assert status["placement"] == {"pod": "pod-a", "podUID": pods[0].uid, "epoch": 5}
    assert {condition["type"] for condition in status["conditions"]} == {"Scheduled", "Ready", "Replayed"}


@pytest.mark.parametrize("epoch", [5, 6, 4], ids=["the same epoch", "a higher epoch", "a lower epoch"])
async def test_a_pod_that_does_not_hold_the_actor_is_told_to_try_again_and_changes_nothing(fenced: Fenced, name: str, pods: tuple[Writer, Writer], epoch: int) -> None:
    holder, other = pods
    await place(fenced, name, holder, 5)
    before = fenced.read(name)

    with pytest.raises(RetryableError) as error:
        await report(fenced, name, other, epoch)

    assert f"only the operator and the pod that status.placement names, pod-a ({holder.uid}), may write it, and this was pod pod-b ({other.uid})" in str(error.value)
    assert fenced.read(name) == before


async def test_a_pod_that_lost_the_actor_writes_nothing_more(fenced: Fenced, name: str, pods: tuple[Writer, Writer]) -> None:
    zombie, heir = pods
    await place(fenced, name, zombie, 5)
    await report(fenced, name, zombie, 5)
    await place(fenced, name, heir, 6)
    await report(fenced, name, heir, 6, version=4)

    with pytest.raises(RetryableError):
        await report(fenced, name, zombie, 5, version=9)

    assert (fenced.read(name)["status"]["version"], fenced.read(name)["status"]["reportedEpoch"]) == (4, 6)


async def test_a_pod_that_has_the_actor_again_does_not_speak_of_the_time_before(fenced: Fenced, name: str, pods: tuple[Writer, Writer]) -> None:
    for epoch, pod in ((5, pods[0]), (6, pods[1]), (7, pods[0])):
        await place(fenced, name, pod, epoch)

    with pytest.raises(RetryableError, match=r"the actor is placed at epoch 7, and pod pod-a .* speaks for an earlier one"):
        await report(fenced, name, pods[0], 5)
    await report(fenced, name, pods[0], 7)

    assert fenced.read(name)["status"]["reportedEpoch"] == 7


async def test_a_pod_of_the_same_name_made_anew_is_another_one(fenced: Fenced, name: str) -> None:
    first = fenced.add_pod("twin")
    await place(fenced, name, first, 5)
    fenced.kubectl("delete", "pod", "twin", "--grace-period=0", "--force")
    second = fenced.add_pod("twin")

    with pytest.raises(RetryableError, match=second.uid):
        await report(fenced, name, second, 5)


async def test_nobody_holds_an_actor_without_a_placement(fenced: Fenced, name: str, pods: tuple[Writer, Writer]) -> None:
    with pytest.raises(RetryableError, match="which is none now"):
        await report(fenced, name, pods[0], 5)
    await place(fenced, name, pods[0], 5)
    await place(fenced, name, None, 6)
    with pytest.raises(RetryableError, match="which is none now"):
        await report(fenced, name, pods[0], 6)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        ({"placement": {"epoch": 6}}, r"status.placement: only the operator changes it, and this was pod pod-a"),
        ({"placement": {"pod": "pod-b", "podUID": "b", "epoch": 6}}, "status.placement: only the operator changes it"),
        ({"conditions": []}, "status.conditions: Scheduled and Suspended are the operator's"),
    ],
)
async def test_even_the_pod_that_holds_the_actor_leaves_what_is_the_operators(fenced: Fenced, name: str, pods: tuple[Writer, Writer], status: JsonObject, says: str) -> None:
    await place(fenced, name, pods[0], 5)
    before = fenced.read(name)

    async with calling(pods[0]) as client:
        with pytest.raises(KubeForbidden, match=says):
            await client.patch_merge(ACTORS.path(fenced.namespace, name, "status"), {"status": {"reportedEpoch": 9, **status}})

    assert fenced.read(name) == before


async def test_a_report_that_comes_late_is_covered_by_the_newest_again(fenced: Fenced, name: str, nats_server: EmbeddedServer) -> None:
    """One that was given up in an outage may reach the API server after the next one, which took another connection."""
    actor, pod = parse_actor_id(fenced.namespace, "account", name), fenced.add_pod("late")
    await place(fenced, name, pod, 5)
    async with running(fenced, nats_server, pod) as (runtime, _):
        await until(lambda: is_ready(runtime, actor))
        await send(runtime, "Open", {"owner": "ada"}, actor)
        await send(runtime, "Deposit", {"amount": 1}, actor)
        await until(lambda: bool(fenced.read(name)["status"].get("version") == 2))

        await report(fenced, name, pod, 5, version=1)

        await until(lambda: bool(fenced.read(name)["status"]["version"] == 2))


async def test_a_person_who_may_patch_statuses_repairs_one_only_with_the_verb_place(fenced: Fenced, name: str, pods: tuple[Writer, Writer]) -> None:
    await place(fenced, name, pods[0], 5)
    helpless, repairer = fenced.person("patch"), fenced.person("patch", "place")

    with pytest.raises(KubeForbidden, match=f"for a repair by hand: the verb place on actors/status, as in ClusterRole {fenced.release}-repair"):
        await place(fenced, name, pods[1], 6, by=helpless)
    await place(fenced, name, pods[1], 6, by=repairer)

    assert fenced.read(name)["status"]["placement"]["pod"] == "pod-b"


async def test_not_even_who_may_place_turns_an_epoch_back(fenced: Fenced, name: str, pods: tuple[Writer, Writer]) -> None:
    await place(fenced, name, pods[0], 5)

    for placed, epoch in ((pods[1], 4), (pods[1], 5)):
        with pytest.raises(KubeInvalid, match=r"status\.placement\.epoch"):
            await place(fenced, name, placed, epoch)


def test_the_api_server_finds_nothing_wrong_with_the_expressions(fenced: Fenced) -> None:
    fenced.kubectl("wait", "--for=jsonpath={.status.observedGeneration}=1", f"validatingadmissionpolicy/{fenced.release}-actor-status", "--timeout=60s")
    status = json.loads(fenced.kubectl("get", f"validatingadmissionpolicy/{fenced.release}-actor-status", "--output=json"))["status"]

    assert not status["typeChecking"].get("expressionWarnings")


class Deaf:
    """A pod's source that hears of its actors once, and of nothing that happens to them later."""

    def __init__(self, source: KubernetesSource) -> None:
        self._source = source

    async def run(self, listener: DesiredListener) -> None:
        await self._source.run(OnlyAdopting(listener))

    async def find(self, actor: ActorId) -> Home | None:
        return await self._source.find(actor)


@dataclass
class OnlyAdopting:
    listener: DesiredListener
    adopted: set[ActorId] = field(default_factory=set[ActorId])

    def on_adopt(self, desired: DesiredActor) -> None:
        if desired.actor not in self.adopted:
            self.adopted.add(desired.actor)
            self.listener.on_adopt(desired)

    def on_release(self, actor: ActorId, epoch: Epoch) -> None:
        pass

    def on_model(self, model: ActorModel) -> None:
        self.listener.on_model(model)

    def on_model_gone(self, name: str) -> None:
        self.listener.on_model_gone(name)

    def on_synced(self) -> None:
        self.listener.on_synced()

    def on_status_shown(self, actor: ActorId, shown: ShownStatus) -> None:
        pass


async def test_a_pod_that_does_not_hear_of_its_end_neither_appends_nor_writes_the_status(fenced: Fenced, name: str, nats_server: EmbeddedServer) -> None:
    actor, first, second = parse_actor_id(fenced.namespace, "account", name), fenced.add_pod("zombie"), fenced.add_pod("heir")
    await place(fenced, name, first, 5)
    async with running(fenced, nats_server, first, hear=Deaf) as (zombie, reports), running(fenced, nats_server, second) as (heir, _):
        await until(lambda: reports.shows(ActorPhase.READY))
        await place(fenced, name, second, 6)
        await until(lambda: is_ready(heir, actor))
        opened = await send(heir, "Open", {"owner": "ada"}, actor)

        assert is_ready(zombie, actor), "it serves on: nobody told it"
        answer = await send(zombie, "Deposit", {"amount": 1}, actor)
        await until(lambda: bool(reports.refused))
        await until(lambda: bool(fenced.read(name)["status"].get("version") == 2))

        async with connected(nats_server.url) as connection:
            commits = await read_history(await open_journal(connection, fenced.namespace), actor)
    check_log(commits)
    status = fenced.read(name)["status"]
    assert (opened.outcome, answer.outcome, answer.version) == ("accepted", "accepted", 2), "its caller was passed on to the heir"
    assert {(commit.pod.split("/")[0], commit.epoch) for commit in commits} == {(second.uid, 6)}
    assert f"only the operator and the pod that status.placement names, heir ({second.uid})" in reports.refused[0]
    assert (status["reportedEpoch"], status["placement"]["pod"]) == (6, "heir")


async def test_a_pod_that_hears_of_its_placement_before_the_resource_shows_it_serves_at_once_and_reports_later(fenced: Fenced, name: str, nats_server: EmbeddedServer) -> None:
    actor, pod = parse_actor_id(fenced.namespace, "account", name), fenced.add_pod("early")
    async with running(fenced, nats_server, pod) as (early, reports):
        early.runtime.on_adopt(replace(build_desired(Actor.model_validate(fenced.read(name))), epoch=Epoch(5)))
        await until(lambda: bool(reports.refused) and is_ready(early, actor))
        assert (await send(early, "Open", {"owner": "ada"}, actor)).outcome == "accepted"

        await place(fenced, name, pod, 5)
        await until(lambda: reports.shows(ActorPhase.READY))

        assert is_ready(early, actor)
    assert fenced.read(name)["status"]["reportedEpoch"] == 5


async def test_a_pod_lets_an_actor_go_that_was_deleted_while_it_was_given_to_it(fenced: Fenced, name: str, nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reporter, "HELD_S", 1.0)
    monkeypatch.setattr(unshown, "LOOK_EVERY_S", 0.2)
    actor, pod = parse_actor_id(fenced.namespace, "account", name), fenced.add_pod("given")
    given = replace(build_desired(Actor.model_validate(fenced.read(name))), epoch=Epoch(5))
    async with running(fenced, nats_server, pod) as (late, reports):
        late.runtime.on_assign(given)
        await until(lambda: is_ready(late, actor))
        await asyncio.sleep(2.0)  # its resource is there, though it does not show the placement yet
        assert is_ready(late, actor)

        fenced.kubectl("delete", "actor", name)
        await until(lambda: actor not in late.runtime.registry.desired and late.runtime.registry.get(actor) is None)

    assert reports.refused == []
