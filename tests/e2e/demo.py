"""`make demo-kubernetes`: the bank on a kind cluster, shown step by step; what it starts it also ends.

With AETHER_KEEP=1 the cluster stays for you to play with; `make clean-cluster` removes it.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time

from aether_api.messages import Reply
from aether_nats.client import CommandClient
from tests.cluster.lifecycle import ensure_cluster, release_cluster
from tests.cluster.processes import ClusterError
from tests.e2e.bank import EXAMPLES, Bank, install_bank, uninstall_bank

NAMES = ("alice", "bob", "carol")


def main() -> int:
    """Run the demo and return the exit code."""
    keep = os.environ.get("AETHER_KEEP") == "1"
    try:
        cluster = ensure_cluster(keep=keep)
    except ClusterError as exc:
        print(exc, file=sys.stderr)
        return 1
    bank: Bank | None = None
    try:
        bank = install_bank(cluster, "bank", say=say)
        return asyncio.run(play(bank))
    except (ClusterError, AssertionError) as exc:
        print(exc, file=sys.stderr)
        return 1
    finally:
        if keep:
            say(f"the cluster stays; try: kubectl --kubeconfig {cluster.kubeconfig} -n bank get actors")
        else:
            if bank is not None:
                uninstall_bank(bank)
            release_cluster(cluster)


async def play(bank: Bank) -> int:
    """Apply, watch, send, kill, and compare."""
    watch = subprocess.Popen(bank.cluster.command("kubectl", "-n", bank.namespace, "get", "actors", "--watch"))
    try:
        show(bank, "apply", f"--filename={EXAMPLES}")
        bank.wait_ready(NAMES)
        async with bank.connect() as connection:
            client = CommandClient(connection)
            for name in NAMES:
                await client.send(bank.actor(name), "Open", {"owner": name})
                for amount in range(1, 11):
                    await client.send(bank.actor(name), "Deposit", {"amount": amount})
            victim = bank.read("actor", "alice")["status"]["placement"]["pod"]
            show(bank, "delete", "pod", victim, "--grace-period=0", "--force", "--wait=false")
            replies, slowest_s = await _deposit_until_moved(bank, client, victim)
            say(f"the accounts live elsewhere now; the longest that a command had to wait meanwhile: {slowest_s:.2f} s")
            logs = [len(await bank.read_events(connection, name)) for name in NAMES]
        await asyncio.sleep(2)  # the status follows on its budget, and the watch shows it to the person who looks on
    finally:
        watch.terminate()
        watch.wait(10)
    show(bank, "get", "actors", "--output=wide")
    say(f"the log holds {logs} events")
    return 0 if logs == [reply.version for reply in replies] else 1


async def _deposit_until_moved(bank: Bank, client: CommandClient, victim: str) -> tuple[list[Reply], float]:
    """Send deposits until no account is on the killed pod; return the last replies and the longest wait."""
    slowest_s = 0.0
    while True:
        replies: list[Reply] = []
        for name in NAMES:
            began_s = time.monotonic()
            replies.append(await client.send(bank.actor(name), "Deposit", {"amount": 100}, timeout_s=60))
            slowest_s = max(slowest_s, time.monotonic() - began_s)
        actors = await asyncio.to_thread(bank.read, "actors")
        if all(actor["status"]["placement"]["pod"] != victim for actor in actors["items"]):
            return replies, slowest_s


def show(bank: Bank, *arguments: str) -> None:
    """Run kubectl and show the call and what it printed."""
    print(f"$ kubectl {' '.join(arguments)}\n{bank.kubectl(*arguments)}", flush=True)


def say(text: str) -> None:
    """Print progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
