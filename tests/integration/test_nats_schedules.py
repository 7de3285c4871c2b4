"""What models may say of schedules, held against the server: whatever passes the check is kept, and the check refuses no more than it says."""

from __future__ import annotations

import random
from typing import Final

import pytest

from aether_api.errors import CommandFailed
from aether_api.identity import parse_actor_id
from aether_model.model import Cron
from aether_model.schedule import check_schedule
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.jetstream import JetStream
from aether_nats.schedules import Reminder, Schedules
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamPlan, ensure_streams

ALICE: Final = parse_actor_id("default", "account", "alice")
SEED: Final = 20_260_701
ROUNDS: Final = 400
ATOMS: Final = ("*", "?", "0", "1", "5", "12", "23", "29", "30", "31", "59", "60", "00", "07", "mon", "SUN", "jan", "Dec", "1-5", "5-1", "mon-FRI", "jan-mar")
STEPS: Final = ("", "", "", "/1", "/5", "/10", "/0", "/99")
KNOWN: Final = (
    Cron("@hourly"), Cron("@midnight"), Cron("@weekly", "Europe/Berlin"), Cron("@every 1s"), Cron("@every 1500ms"), Cron("@every 1h30m"), Cron("@every 0.5h"),
    Cron("@every 999ms"), Cron("@never"), Cron("0 0 0 29 2 *"), Cron("0 0 0 31 4 *"), Cron("0 0 0 31 4 MON"), Cron("0 0 9 * * *", "America/New_York"), Cron("0 0 9 * * *", "Moon"),
    Cron("@every 1h", "Europe/Berlin"), Cron("0 0 9 * *"), Cron("0 0 9 * * 7"), Cron("0 0 9 L * *"),
)  # fmt: skip


@pytest.fixture
def nats_server(any_nats_server: EmbeddedServer) -> EmbeddedServer:
    """Run the tests on nats-server and on the simulated one."""
    return any_nats_server


def random_cron(source: random.Random) -> Cron:
    """A text that is often right: a random field among ones that are."""
    fields = ["0", "0", "9", "*", "*", "*"]
    for place in source.sample(range(6), source.randint(1, 3)):
        fields[place] = ",".join(source.choice(ATOMS) + source.choice(STEPS) for _ in range(source.choice((1, 1, 1, 2))))
    return Cron(" ".join(fields))


async def is_kept(schedules: Schedules, cron: Cron) -> bool:
    try:
        await schedules.set(ALICE, Reminder("r", "Dun", b"{}", cron.text, zone=cron.zone if cron.zone != "UTC" else ""), "t")
    except CommandFailed:
        return False
    return True


@pytest.mark.slow
async def test_the_server_keeps_what_passes_the_check_and_little_else(nats_server: EmbeddedServer) -> None:
    source = random.Random(SEED)
    connection = await NatsConnection.open(NatsSettings((nats_server.url,)))
    try:
        await ensure_streams(connection, "default", StreamPlan(partitions=1))
        schedules = Schedules(JetStream(connection))
        verdicts = [(cron, check_schedule(cron), await is_kept(schedules, cron)) for cron in (*KNOWN, *(random_cron(source) for _ in range(ROUNDS)))]
    finally:
        await connection.close()
    assert [(cron, problem) for cron, problem, kept in verdicts if problem is None and not kept] == []
    stricter = {cron.text for cron, problem, kept in verdicts if problem is not None and kept and "its step is not zero and within it" not in problem}
    assert stricter <= {"@every 1h"}, "only steps beyond their range, and a time zone that has no meaning, are refused though the server takes them"
    assert sum(problem is None for _, problem, _ in verdicts) > 50
