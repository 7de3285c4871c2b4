"""Candidates against an API server that hangs, forgets and conflicts: whoever leads knows when it no longer does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiohttp import web

from aether_api.errors import InternalError, KubeUnavailable, LeadershipLost
from aether_kube.client import KubeClient
from aether_kube.connection import anonymous_connection
from aether_kube.documents import text_at
from aether_kube.kinds import ACTORS, LEASES
from aether_kube.leader import Clocks, LeaderElector, Leadership, LeasePlace
from aether_kube.lease import TERM_ANNOTATION, LeaseRecord, LeaseTiming, Tenure, parse_lease
from tests.fake_apiserver import FakeApiServer, Fault
from tests.integration.links import CutLink

DEADLINE_S = 20.0
PLACE = LeasePlace("system", "operator")
TIMING = LeaseTiming(lease_s=2.0, renew_by_s=1.2, retry_s=0.1, absent_after_s=0.8, out_of_sight_s=0.6)
PATIENT = LeaseTiming(lease_s=60.0, renew_by_s=50.0, retry_s=0.02, absent_after_s=40.0, out_of_sight_s=30.0)
"""For tests in which nothing runs out by itself."""


@dataclass
class Neighbour:
    """A witness of which a test says what it sees."""

    in_sight_since_s: float | None = float("-inf")
    absent: set[str] = field(default_factory=set[str])

    async def is_absent(self, holder: str) -> bool:
        return holder in self.absent


@dataclass
class Candidate:
    """A candidate, and the tenures that it had."""

    elector: LeaderElector
    neighbour: Neighbour
    tenures: list[Leadership] = field(default_factory=list[Leadership])
    leads: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] = field(init=False)

    @property
    def term(self) -> int:
        return self.tenures[-1].term

    async def lead(self, leadership: Leadership) -> None:
        self.tenures.append(leadership)
        self.leads.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


class Election:
    """Candidates for one Lease of one server."""

    def __init__(self, server: FakeApiServer, tasks: asyncio.TaskGroup) -> None:
        self.server = server
        self._tasks = tasks
        self._clients: list[KubeClient] = []

    def add(self, name: str, timing: LeaseTiming = TIMING, *, url: str = "", clocks: Clocks | None = None) -> Candidate:
        client = KubeClient(anonymous_connection(url or self.server.url))
        self._clients.append(client)
        neighbour = Neighbour()
        candidate = Candidate(LeaderElector(client, PLACE, name, neighbour, timing=timing, clocks=clocks), neighbour)
        candidate.task = self._tasks.create_task(candidate.elector.run(candidate.lead), name=name)
        return candidate

    @property
    def record(self) -> LeaseRecord:
        return parse_lease(self.server.documents.objects[PLACE.path])

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def election() -> AsyncGenerator[Election, None]:
    async with FakeApiServer() as server:
        held: Election | None = None
        try:
            async with asyncio.timeout(DEADLINE_S), asyncio.TaskGroup() as tasks:
                held = Election(server, tasks)
                # Instead of the wait for a leader that might put a missing Lease back.
                await server.put(PLACE.path, {"metadata": {"namespace": PLACE.namespace, "name": PLACE.name}})
                yield held
                await server.let_go()
                for task in asyncio.all_tasks():
                    if task.get_name().startswith("candidate"):
                        task.cancel()
        finally:
            if held is not None:
                await held.close()


def writes(server: FakeApiServer) -> int:
    return sum(1 for request in server.requests if request.method != "GET")


async def test_the_lease_is_given_back_at_the_end_and_the_next_one_leads_with_a_higher_term() -> None:
    async with election() as stage:
        first = stage.add("candidate a", PATIENT)
        await first.leads.wait()
        second = stage.add("candidate b", PATIENT)
        await stage.server.until(lambda: writes(stage.server) >= 3)
        assert not second.leads.is_set()

        await first.end()
        await second.leads.wait()

        assert first.ended.is_set()
        assert second.term > first.term
        assert (stage.record.holder, stage.record.term, stage.record.transitions) == ("candidate b", second.term, 2)


async def test_a_missing_lease_is_made_once_it_is_clear_that_nobody_puts_it_back() -> None:
    async with election() as stage:
        await stage.server.remove(PLACE.path)
        only = stage.add("candidate a", PATIENT)
        await only.leads.wait()

        assert sum(1 for request in stage.server.requests if request.method == "GET") >= 2
        assert text_at(stage.server.documents.objects[PLACE.path], "metadata", "annotations", TERM_ANNOTATION) == str(only.term)


async def test_a_leader_whose_lease_is_deleted_puts_it_back_and_leads_on() -> None:
    async with election() as stage:
        leader = stage.add("candidate a", PATIENT)
        await leader.leads.wait()
        stage.add("candidate b", PATIENT)
        await stage.server.remove(PLACE.path)
        await stage.server.until(lambda: PLACE.path in stage.server.documents.objects)

        assert (stage.record.holder, stage.record.term) == ("candidate a", leader.term)
        assert leader.tenures[-1].is_valid


async def test_a_lease_that_somebody_touches_stays_with_its_leader() -> None:
    async with election() as stage:
        leader = stage.add("candidate a", PATIENT)
        await leader.leads.wait()
        document = stage.server.documents.objects[PLACE.path]
        await stage.server.put(PLACE.path, {**document, "metadata": {**document["metadata"], "labels": {"a": "b"}}})  # type: ignore[dict-item]  # metadata is an object
        seen = stage.record.renewed
        await stage.server.until(lambda: stage.record.renewed != seen)

        assert (stage.record.holder, len(leader.tenures)) == ("candidate a", 1)
        assert text_at(stage.server.documents.objects[PLACE.path], "metadata", "labels", "a") == "b"


async def test_a_leader_that_finds_another_holder_stops_at_once() -> None:
    async with election() as stage:
        leader = stage.add("candidate a", PATIENT)
        await leader.leads.wait()
        document = stage.server.documents.objects[PLACE.path]
        await stage.server.put(PLACE.path, {**document, "spec": {"holderIdentity": "somebody", "leaseDurationSeconds": 60}})
        await leader.ended.wait()

        assert stage.record.holder == "somebody"


async def test_a_leader_whose_calls_hang_stops_before_its_lease_is_free_and_the_next_one_leads_after_that() -> None:
    async with election() as stage, CutLink.to(int(stage.server.url.rpartition(":")[2])) as link:
        leader = stage.add("candidate a", url=link.http_url)
        await leader.leads.wait()
        standby = stage.add("candidate b")
        link.stall()
        await standby.leads.wait()

        assert leader.ended.is_set()
        assert not leader.tenures[0].is_valid
        assert standby.term > leader.term
        link.mend()


async def test_a_holder_that_nobody_finds_is_replaced_before_its_lease_runs_out() -> None:
    async with election() as stage:
        patient = LeaseTiming(lease_s=600.0, renew_by_s=500.0, retry_s=0.1, absent_after_s=0.8, out_of_sight_s=0.6)
        await stage.server.put(PLACE.path, {"metadata": {"namespace": PLACE.namespace, "name": PLACE.name}, "spec": {"holderIdentity": "gone", "leaseDurationSeconds": 600}})
        standby = stage.add("candidate b", patient)
        await stage.server.until(lambda: len(stage.server.requests) >= 12)
        assert not standby.leads.is_set()

        standby.neighbour.absent.add("gone")
        await standby.leads.wait()


async def test_a_leader_that_nobody_can_find_stops_when_two_renewals_failed() -> None:
    async with election() as stage:
        timing = LeaseTiming(lease_s=600.0, renew_by_s=500.0, retry_s=0.1, absent_after_s=0.8, out_of_sight_s=0.6)
        leader = stage.add("candidate a", timing)
        await leader.leads.wait()
        stage.server.faults.append(Fault(lambda request: request.method == "PATCH", 503, times=1_000_000))
        leader.neighbour.in_sight_since_s = None
        await leader.ended.wait()

        assert not leader.tenures[0].is_valid


async def test_one_that_slept_knows_at_its_first_step_that_it_leads_no_longer() -> None:
    """A process that is stopped for a while goes on in the middle of whatever it did; only its clock tells."""
    slept_s = 0.0

    def monotonic() -> float:
        return asyncio.get_running_loop().time() + slept_s

    async with election() as stage:
        leader = stage.add("candidate a", PATIENT, clocks=Clocks(monotonic=monotonic))
        await leader.leads.wait()
        leader.tenures[0].check()

        slept_s = 60.0

        with pytest.raises(LeadershipLost):
            leader.tenures[0].check()
        await leader.ended.wait()


async def test_a_guarded_client_sends_no_write_after_the_tenure_and_still_reads() -> None:
    slept_s = 0.0

    async with election() as stage:
        leader = stage.add("candidate a", PATIENT, clocks=Clocks(monotonic=lambda: asyncio.get_running_loop().time() + slept_s))
        await leader.leads.wait()
        async with KubeClient(anonymous_connection(stage.server.url), before_write=leader.tenures[0].check) as client:
            await client.create(ACTORS.path("shop"), ACTORS.document("shop", "alice"))
            slept_s = 60.0

            with pytest.raises(LeadershipLost):
                await client.create(ACTORS.path("shop"), ACTORS.document("shop", "bob"))
            assert await client.get(ACTORS.path("shop", "alice"))

        assert ACTORS.path("shop", "bob") not in stage.server.documents.objects


async def test_who_hears_of_a_higher_term_steps_down_and_the_next_term_is_above_that() -> None:
    async with election() as stage:
        leader = stage.add("candidate a", PATIENT)
        await leader.leads.wait()
        higher = leader.term + 1_000_000
        leader.leads.clear()
        with pytest.raises(LeadershipLost, match=str(higher)):
            leader.tenures[0].note_term(higher)
        await leader.leads.wait()

        assert leader.term > higher


async def test_a_renewal_whose_answer_was_lost_ends_nothing() -> None:
    async with election() as stage:
        leader = stage.add("candidate a", PATIENT)
        await leader.leads.wait()

        def is_renewal(request: web.Request) -> bool:
            if request.method != "PATCH":
                return False
            stage.server.documents.put(PLACE.path, stage.server.documents.objects[PLACE.path])  # it was carried out
            return True

        stage.server.faults += [Fault(is_renewal, 0), Fault(is_renewal, 500)]
        await stage.server.until(lambda: not stage.server.faults)
        seen = stage.record.renewed
        await stage.server.until(lambda: stage.record.renewed != seen)

        assert len(leader.tenures) == 1


async def test_of_two_that_want_a_free_lease_at_once_one_gets_it() -> None:
    async with election() as stage:
        reads: list[web.Request] = []

        def is_second_step(request: web.Request) -> bool:
            if request.method == "GET":
                reads.append(request)
            return request.method == "PATCH" and len(reads) < 2

        stage.server.holds = is_second_step
        both = [stage.add("candidate a", PATIENT), stage.add("candidate b", PATIENT)]
        await stage.server.until(lambda: writes(stage.server) >= 2)
        await stage.server.let_go()
        await stage.server.until(lambda: writes(stage.server) >= 5)

        assert sorted(len(candidate.tenures) for candidate in both) == [0, 1]


async def test_an_api_server_that_refuses_everything_is_outlived() -> None:
    async with election() as stage:
        stage.server.faults += [Fault(lambda _: True, status) for status in (0, 403, 404, 429, 500, 409)]
        stage.server.faults.append(Fault(lambda _: True, 200, body=b"<html>a proxy</html>"))
        candidate = stage.add("candidate a", PATIENT)
        await candidate.leads.wait()


async def test_a_bug_of_the_leader_reaches_the_supervisor_after_the_lease_was_given_back() -> None:
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client, asyncio.timeout(DEADLINE_S):
        await server.put(PLACE.path, {"metadata": {"namespace": PLACE.namespace, "name": PLACE.name}})

        async def fail(_: Leadership) -> None:
            raise InternalError("broken")

        with pytest.raises(ExceptionGroup) as caught:
            await LeaderElector(client, PLACE, "a", Neighbour(), timing=PATIENT).run(fail)

        assert caught.group_contains(InternalError)
        assert parse_lease(server.documents.objects[PLACE.path]).holder == ""


async def test_a_failure_of_the_api_server_in_the_leaders_work_is_no_loss_of_the_lease() -> None:
    """Only `LeadershipLost` ends a tenure quietly; whatever else leaves the work is a mistake of the work."""
    async with FakeApiServer() as server, KubeClient(anonymous_connection(server.url)) as client, asyncio.timeout(DEADLINE_S):
        await server.put(PLACE.path, {"metadata": {"namespace": PLACE.namespace, "name": PLACE.name}})

        async def fail(_: Leadership) -> None:
            raise KubeUnavailable("away")

        with pytest.raises(ExceptionGroup) as caught:
            await LeaderElector(client, PLACE, "a", Neighbour(), timing=PATIENT).run(fail)

        assert caught.group_contains(KubeUnavailable)


def test_the_path_of_a_lease_is_in_the_operators_own_namespace() -> None:
    assert PLACE.path == LEASES.path("system", "operator") == "/apis/coordination.k8s.io/v1/namespaces/system/leases/operator"


def test_a_tenure_that_somebody_was_told_is_over_does_not_come_back_with_a_late_renewal() -> None:
    now_s = 0.0
    leadership = Leadership(Tenure(LeaseRecord("me", 7, 2), 0.0), TIMING, Neighbour(), lambda: now_s)
    leadership.check()

    now_s = TIMING.renew_by_s
    with pytest.raises(LeadershipLost):
        leadership.check()
    leadership.tenure = Tenure(LeaseRecord("me", 7, 2), now_s)

    assert not leadership.is_valid
    with pytest.raises(LeadershipLost, match="could not be renewed"):
        leadership.check()


def test_a_tenure_that_nobody_asked_about_is_saved_by_a_late_renewal() -> None:
    now_s = TIMING.renew_by_s
    leadership = Leadership(Tenure(LeaseRecord("me", 7, 2), 0.0), TIMING, Neighbour(), lambda: now_s)
    assert not leadership.is_valid

    leadership.tenure = Tenure(LeaseRecord("me", 7, 2), now_s)

    leadership.check()
