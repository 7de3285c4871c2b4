"""The bytes under way: reads wait for each other in order, what failed makes the next ones careful, and nothing that was given up is counted for ever."""

from __future__ import annotations

import asyncio

import pytest

from aether_api.errors import AetherError, Disconnected, NoResponders, RequestTimeout
from aether_nats import read_budget
from aether_nats.message import Message
from aether_nats.read_budget import MESSAGE_BYTES_MAX, MESSAGE_BYTES_MIN, PULL_BYTES_MAX, PULLS_BYTES_MAX, REQUEST_BYTES, RUNS_BYTES_MAX, PullShares, ReadBudget


def build_budget() -> ReadBudget:
    return ReadBudget(RUNS_BYTES_MAX)


def messages(count: int, size: int) -> list[Message]:
    return [Message(b"", b"", b"", b"x" * size)] * count


async def give(found: list[Message]) -> list[Message]:
    return found


async def fail(error: AetherError) -> list[Message]:
    raise error


def refuse(error: AetherError) -> asyncio.Future[list[Message]]:
    raise error


class Server:
    """Answers when it is told to, and knows how many reads it was asked for."""

    def __init__(self) -> None:
        self.asked: list[asyncio.Future[list[Message]]] = []

    def ask(self) -> asyncio.Future[list[Message]]:
        self.asked.append(asyncio.get_running_loop().create_future())
        return self.asked[-1]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_what_is_large_is_read_a_few_at_a_time() -> None:
    budget = build_budget()
    assert budget.count() > 1000
    assert REQUEST_BYTES // 110_000 <= budget.count(100_000) <= REQUEST_BYTES // 100_000
    assert budget.count(2 * REQUEST_BYTES) == 1


async def test_what_came_last_tells_how_large_the_next_will_be() -> None:
    budget = build_budget()
    await budget.read(4, 0, lambda: give(messages(4, 100_000)))
    assert budget.count() == REQUEST_BYTES // 100_000
    for _ in range(20):
        await budget.read(4, 0, lambda: give(messages(4, 10)))
    assert budget.count() == build_budget().count()


@pytest.mark.parametrize("error", [Disconnected("the link is lost"), RequestTimeout("late")])
async def test_after_losses_and_late_answers_less_and_less_is_asked_for_but_always_something(error: AetherError) -> None:
    budget = build_budget()
    counts = [budget.count()]
    for _ in range(8):
        with pytest.raises(type(error)):
            await budget.read(counts[-1], 0, lambda: fail(error))
        counts.append(budget.count())
    assert counts == sorted(counts, reverse=True)
    assert counts[1] < counts[0] / 4
    assert counts[-1] == 1
    assert budget.count(MESSAGE_BYTES_MAX) == 1
    for _ in range(20):
        await budget.read(1, 0, lambda: give(messages(1, 10)))
    assert budget.count() == counts[0]


async def test_one_loss_of_the_link_counts_once_however_many_reads_it_ends() -> None:
    counts: list[int] = []
    for reads in (1, 50):
        budget, server = build_budget(), Server()

        async def read() -> None:
            with pytest.raises(Disconnected):
                await budget.read(1, 0, server.ask)  # noqa: B023  # ends within its round

        async with asyncio.TaskGroup() as tasks:
            for _ in range(reads):
                tasks.create_task(read())
            await settle()
            for asked in server.asked:
                asked.set_exception(Disconnected("the link is lost"))
        counts.append(budget.count())
    assert counts[0] == counts[1]


async def test_a_stream_that_nobody_serves_or_that_cannot_be_asked_says_nothing_of_sizes() -> None:
    """While the link is down each of many tries is refused at once."""
    budget = build_budget()
    with pytest.raises(NoResponders):
        await budget.read(10, 0, lambda: fail(NoResponders("nobody")))
    for _ in range(10):
        with pytest.raises(Disconnected):
            await budget.read(10, 0, lambda: refuse(Disconnected("the link is down")))
    assert budget.count() == build_budget().count()
    await budget.read(1, RUNS_BYTES_MAX, lambda: give([]))


async def test_reads_wait_until_there_is_room_in_the_order_in_which_they_came() -> None:
    budget, server = build_budget(), Server()
    size = RUNS_BYTES_MAX // 4
    ended: list[int] = []

    async def read(number: int, count: int) -> None:
        await budget.read(count, size, server.ask)
        ended.append(number)

    async with asyncio.TaskGroup() as tasks:
        for number, count in enumerate((3, 2, 1)):  # the last would fit beside the first, and waits behind the second
            tasks.create_task(read(number, count))
            await settle()
        assert len(server.asked) == 1
        server.asked[0].set_result(messages(3, 1))
        await settle()
        assert len(server.asked) == 3
        server.asked[2].set_result(messages(1, 1))
        await settle()
        server.asked[1].set_result(messages(2, 1))
    assert ended == [0, 2, 1]


async def test_a_read_with_a_bound_takes_no_more_room_than_that() -> None:
    budget, server = build_budget(), Server()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(budget.read(100, RUNS_BYTES_MAX // 4, server.ask, bytes_max=RUNS_BYTES_MAX // 2))
        await settle()
        assert len(server.asked) == 2
        for asked in server.asked:
            asked.set_result([])


async def test_a_read_with_a_bound_takes_room_for_the_one_message_that_comes_whatever_it_is() -> None:
    budget, server = build_budget(), Server()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(3):
            tasks.create_task(budget.read(100, RUNS_BYTES_MAX // 3, server.ask, bytes_max=1))
        await settle()
        assert len(server.asked) == 2
        for _ in range(2):
            server.asked[0].set_result([])
            await settle()
            server.asked.pop(0)
        server.asked[0].set_result([])


async def test_what_is_larger_than_all_room_has_its_turn_alone() -> None:
    budget, server = build_budget(), Server()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(2):
            tasks.create_task(budget.read(100, RUNS_BYTES_MAX, server.ask))
        await settle()
        assert len(server.asked) == 1
        server.asked[0].set_result(messages(1, 1))
        await settle()
        server.asked[1].set_result(messages(1, 1))


@pytest.mark.parametrize("steps", range(6))
async def test_a_read_that_is_given_up_while_it_waits_or_has_its_turn_leaves_its_room_to_others(steps: int) -> None:
    budget, server = build_budget(), Server()
    async with asyncio.TaskGroup() as tasks:
        _, second, third = [tasks.create_task(budget.read(1, RUNS_BYTES_MAX, server.ask)) for _ in range(3)]
        await settle()
        server.asked[0].set_result([])
        for _ in range(steps):
            await asyncio.sleep(0)
        second.cancel()
        await settle()
        server.asked[-1].set_result([])
        await third
        assert second.cancelled()
    await budget.read(1, RUNS_BYTES_MAX, lambda: give([]))


async def test_a_read_waits_for_as_long_as_others_get_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_budget, "PATIENCE_S", 0.4)
    budget, server = build_budget(), Server()
    half = RUNS_BYTES_MAX // 2 - MESSAGE_BYTES_MIN
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(budget.read(1, half, server.ask))  # never answered
        await settle()
        for _ in range(8):
            tasks.create_task(budget.read(1, half, server.ask))
        last = tasks.create_task(budget.read(1, half, server.ask))
        for place in range(1, 9):
            await asyncio.sleep(0.08)
            server.asked[place].set_result([])
        await settle()
        server.asked[9].set_result([])
        await last
        with pytest.raises(RequestTimeout, match="no room"):
            await budget.read(1, RUNS_BYTES_MAX, server.ask)
        server.asked[0].set_result([])
    await budget.read(1, RUNS_BYTES_MAX, lambda: give([]))


def test_consumers_share_what_they_may_have_under_way() -> None:
    shares = PullShares()
    assert shares.each == PULL_BYTES_MAX
    for _ in range(100):
        shares.join()
    assert 0 < shares.each * 100 * 2 <= PULLS_BYTES_MAX
    for _ in range(100):
        shares.leave()
    assert shares.each == PULL_BYTES_MAX


def test_consumers_of_large_messages_are_few() -> None:
    shares, size = PullShares(), 1_000_000
    while shares.has_room(size):
        shares.join()
    assert PULLS_BYTES_MAX // (2 * size) == shares._sharing
    assert PullShares().has_room(1 << 40)
