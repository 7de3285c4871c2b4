"""The page that Prometheus scrapes."""

from __future__ import annotations

import aiohttp

from aether_nats.client import CommandClient
from aether_nats.embedded import EmbeddedServer
from aether_runtime.exposition import build_registry, build_renderer
from aether_runtime.probes import serve_probes
from tests.cluster.processes import find_free_ports
from tests.histories.bank import ALICE
from tests.histories.cluster import connected, running_pod


async def test_a_scrape_over_http_tells_commands_vms_and_the_link(nats_server: EmbeddedServer) -> None:
    [port] = find_free_ports(1)
    async with running_pod(nats_server.url, "pod-a") as pod, connected(nats_server.url) as connection:
        await CommandClient(connection).send(ALICE, "Open", {"owner": "alice"})
        close = await serve_probes(port, lambda: True, build_renderer(build_registry(pod.runtime.metrics)))
        async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as response:
            lines = (await response.text()).splitlines()
        await close()
    assert response.headers["Content-Type"].startswith("text/plain")
    for expected in (
        'aether_commands_total{model="account",outcome="accepted"} 1.0',
        'aether_command_seconds_count{model="account"} 1.0',
        'aether_commits_total{model="account"} 1.0',
        'aether_vms{phase="Ready"} 1.0',
        'aether_models{state="accepted"} 1.0',
        "aether_subscriptions 1.0",
        "aether_nats_connected 1.0",
        "aether_log_scans_total 0.0",
    ):
        assert expected in lines
    assert any(line.startswith("process_cpu_seconds_total") for line in lines)
