"""Events from node to node, on a NATS server of its own: `python examples/two-nodes/main.py`.

Two nodes, each with a runtime, a version cache and a projection, work on the same accounts. Watch how each hears what the
other stores, and what happens to one that joins late, is cut off, or is too slow. Every line that is printed was checked
before; the program fails at the first that is not true.
"""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

import yaml
from link import Link
from node import NAMESPACE, Node, connected, running_node, until

from aether_nats.embedded import EmbeddedServer
from aether_runtime import ActorId, ActorModel, ActorVersion, BusSettings, EventBus, EventStore, EventStored, Gap, NewEvent, Overflow, VersionConflictError, parse_actor_id

MODEL = Path(__file__).parents[1] / "bank" / "10-account-model.yaml"
ACCOUNTS = [parse_actor_id(NAMESPACE, "account", id) for id in ("alice", "bob", "carol", "dave")]
ALICE = ACCOUNTS[0]


async def main() -> None:
    """Run all of it."""
    model = ActorModel.model_validate(yaml.safe_load(MODEL.read_text()))
    async with EmbeddedServer.start() as server, Link.to(server.port) as link, running_node("a", server.url, model) as a, running_node("b", link.url, model) as b:
        await until(lambda: all(len(node.runtime.presence.pods.live()) == 2 for node in (a, b)), "both nodes know each other")
        await show_broadcast(a, b)
        await show_version_caches(a, b)
        await show_isolation(server, a, b)
        async with running_node("late", server.url, model, known={ALICE: ActorVersion(1)}) as late:
            await show_late_joiner(late)
        await show_cut_off(a, b, link)
        await show_overflow(server, a, b)
        await show_table(server, a, b)


async def show_broadcast(a: Node, b: Node) -> None:
    """Send commands through one node, and see their events on both."""
    say("Broadcast: commands go through node a; both projections hear of every event")
    for amount, account in enumerate(ACCOUNTS, 1):
        await a.send(account, "Open", owner=account.id)
        reply = await a.send(account, "Deposit", amount=100 * amount)
        check(reply.outcome == "accepted" and reply.version == 2, f"{account.id} is open and has {100 * amount}")
    await until_followed((a, b), ACCOUNTS, 2)
    for node in (a, b):
        check([node.projection.balances[account] for account in ACCOUNTS] == [100, 200, 300, 400], f"node {node.name} has the balances 100, 200, 300, 400 from events alone")
    homes = {account.id: node.name for account in ACCOUNTS for node in (a, b) if node.holds(account)}
    check(set(homes.values()) == {"a", "b"}, f"the accounts live on both nodes: {homes}")


async def show_version_caches(a: Node, b: Node) -> None:
    """Let one node save on what the other has stored, without reading the log."""
    say("Version caches: each follows the events of the other")
    await a.store.save_event(ALICE, NewEvent("Deposited", {"amount": 1}), expected_version=2)
    await until_followed([b], [ALICE], 3)
    check(await b.store.get_latest_version(ALICE) == 3, "the cache of node b knows version 3, which node a saved")
    await b.store.save_event(ALICE, NewEvent("Deposited", {"amount": 1}), expected_version=3)
    await until_followed([a], [ALICE], 4)
    try:
        await a.store.save_event(ALICE, NewEvent("Deposited", {"amount": 1}), expected_version=3)
    except VersionConflictError as conflict:
        check((conflict.attempted, conflict.current) == (3, 4), f"who comes too late is told: {conflict}")
    check(await a.store.get_latest_version(ALICE) == await a.store.get_latest_version(ALICE, fresh=True) == 4, "cache and log agree on version 4")


async def show_isolation(server: EmbeddedServer, a: Node, b: Node) -> None:
    """Store an event of an actor with the same name in another namespace."""
    say("Isolation: namespace market has an account alice, too")
    other = parse_actor_id("market", "account", "alice")
    async with connected(server.url) as connection:
        market = await EventStore.open(connection, "market")
        async with EventBus(connection).subscribe_to_event_stored("market") as subscription:
            await market.save_event(other, NewEvent("Deposited", {"amount": 1_000_000}))
            item = await anext(subscription)
            check(isinstance(item, EventStored) and item.actor == other, "market hears of its event")
    await a.send(ALICE, "Deposit", amount=1)
    await until_followed((a, b), [ALICE], 5)
    for node in (a, b):
        check(other not in node.projection.versions, f"node {node.name} of shop has heard nothing of it, though it has heard what was stored after it")


async def show_late_joiner(late: Node) -> None:
    """Start a node that knows little."""
    say("A node that joins late, and knows version 1 of alice")
    await until_followed([late], [ALICE], 5)
    gap = late.projection.gaps[0]
    check((gap.from_version, gap.to_version) == (2, 5), "it is told that it missed versions 2 to 5, and reads them from the log")


async def show_cut_off(a: Node, b: Node, link: Link) -> None:
    """Cut a node off under its actors, and mend the link."""
    say("A node that is cut off")
    for other in ACCOUNTS[1:]:
        await a.send(other, "Deposit", amount=5)
    await until_followed((a, b), ACCOUNTS[1:], 3)
    account = next(account for account in ACCOUNTS if b.holds(account))
    version, gaps = b.projection.versions[account], len(b.projection.gaps)
    link.cut()
    for _ in range(3):
        reply = await a.send(account, "Deposit", amount=10)
        check(reply.outcome == "accepted", f"{account.id} lived on b, and takes a deposit on a: version {reply.version}")
    check(a.holds(account) and b.projection.versions[account] == version, f"node b knows version {version} still")
    link.mend()
    await until_followed((a, b), [account], version + 3)
    missed = [(gap.from_version, gap.to_version) for gap in b.projection.gaps[gaps:] if gap.actor == account]
    check(missed == [(version + 1, version + 3)], f"back again, node b is told that it missed versions {version + 1} to {version + 3}")
    check(await b.store.get_latest_version(account) == version + 3, "its version cache has followed")
    await until(lambda: all(vm.get_version() == version + 3 for node in (a, b) if (vm := node.runtime.get_active_vms().get(account))), "the VMs have caught up")
    check(b.projection.balances[account] == a.projection.balances[account], f"both nodes agree on the balance {a.projection.balances[account]}")


async def show_overflow(server: EmbeddedServer, a: Node, b: Node) -> None:
    """Store more than a slow subscriber has room for."""
    say("A subscriber that is too slow")
    version = a.projection.versions[ALICE]
    async with connected(server.url) as connection, EventBus(connection, BusSettings(queue_max=4)).subscribe_to_event_stored(NAMESPACE, actor_pattern="account/alice") as slow:
        for _ in range(20):
            await a.store.save_event(ALICE, NewEvent("Deposited", {"amount": 1}))
        await connection.flush()
        items = [await anext(slow) for _ in range(6)]
        check(all(isinstance(item, EventStored) for item in items[:4]), "it gets the 4 events that there was room for")
        check(items[4] == Overflow(16), "then it is told that 16 found no room")
        gap = items[5]
        assert isinstance(gap, Gap)
        missed = [item async for item in slow.fetch_missed(gap)]
        check(
            (gap.from_version, gap.to_version, len(missed)) == (version + 5, version + 20, 16), f"and which: versions {version + 5} to {version + 20}, which it reads from the log"
        )
    await until_followed((a, b), [ALICE], version + 20)


async def show_table(server: EmbeddedServer, a: Node, b: Node) -> None:
    """Compare everything that each node believes with the log."""
    say("In the end")
    print("ACCOUNT   LOG  CACHE a  CACHE b  BALANCE a  BALANCE b")
    async with connected(server.url) as connection:
        log = await EventStore.open(connection, NAMESPACE)
        for account in ACCOUNTS:
            events = await log.get_events(account)
            versions = [len(events), await a.store.get_latest_version(account), await b.store.get_latest_version(account)]
            balances = [node.projection.balances[account] for node in (a, b)]
            print(f"{account.id:8}  {versions[0]:>3}  {versions[1]:>7}  {versions[2]:>7}  {balances[0]:>9}  {balances[1]:>9}")
            deposited = sum(int(event.fields().get("amount", 0)) for event in events)
            assert len(set(versions)) == 1, f"{account}: log and caches disagree: {versions}"
            assert balances == [deposited] * 2, f"{account}: log and projections disagree: {deposited} and {balances}"
    say("Both nodes agree with the log")


async def until_followed(nodes: Sequence[Node], accounts: Sequence[ActorId], version: int) -> None:
    """Wait until the projections of some nodes have reached a version of some accounts."""
    names = ", ".join(node.name for node in nodes)
    await until(lambda: all(node.projection.versions.get(account) == version for node in nodes for account in accounts), f"version {version} is seen by {names}")


def say(line: str) -> None:
    """Print a headline."""
    print(f"\n{line}")


def check(is_true: bool, line: str) -> None:
    """Print what is true; fail if it is not."""
    if not is_true:
        raise AssertionError(f"this is not true: {line}")
    print(f"  {line}")


if __name__ == "__main__":
    logging.disable(logging.ERROR)  # a link that is cut is no news here
    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        say("Interrupted: the nodes have left, and their server is stopped")
        sys.exit(130)
