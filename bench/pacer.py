"""Sends commands at an even pace, to many actors in turn, and counts what each accepted.

Unlike `bench.load` it waits for nobody, so the rate is the same whoever answers how fast.

Usage: `python -m bench.pacer JSON`, with the fields of `Pace`; prints how many commands each actor accepted, as a JSON list.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
import time
from typing import Final

import msgspec
import uvloop

from aether_api.messages import format_time
from bench.account import DEPOSIT
from bench.errors import BenchFailed
from bench.load import ACCEPTED
from bench.wire import BareClient, connect

ANSWER_TIMEOUT_S: Final = 20.0
"""Seconds for the last answers."""


class Pace(msgspec.Struct, frozen=True):
    """What to send: `rate` commands a second for some seconds, to the actors `a0`, `a1`, ... in turn."""

    port: int
    namespace: str
    actors: int
    rate: float
    seconds: float


class _Pacer:
    """Sends one command after the other."""

    def __init__(self, client: BareClient, pace: Pace) -> None:
        self._client = client
        self._pace = pace
        self._prefix = secrets.token_hex(6)
        self._under_way = 0
        self._answered = asyncio.Event()
        self.accepted = [0] * pace.actors
        self.refused = b""

    async def run(self) -> None:
        """Send everything and wait for all answers.

        Raises:
            BenchFailed: a command was not accepted, or not answered.
        """
        loop, rate = self._client.loop, self._pace.rate
        began_s = loop.time()
        for number in range(round(rate * self._pace.seconds)):
            self._send(number)
            await asyncio.sleep(max(0.0, began_s + (number + 1) / rate - loop.time()))
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                while self._under_way:
                    self._answered.clear()
                    await self._answered.wait()
        except TimeoutError as exc:
            raise BenchFailed(f"{self._under_way} commands were not answered within {ANSWER_TIMEOUT_S:g} s") from exc
        if self.refused:
            raise BenchFailed(f"a command was not accepted: {self.refused.decode(errors='replace')}")

    def _send(self, number: int) -> None:
        actor = number % self._pace.actors
        headers = f"Aether-Command: {self._prefix}-{number}\r\nAether-Time: {format_time(time.time())}\r\nAether-Timeout-Ms: 10000\r\n".encode()

        def take(_headers: bytes, reply: bytes) -> None:
            del self._client.replies[token]
            self._under_way -= 1
            self._answered.set()
            if reply.startswith(ACCEPTED):
                self.accepted[actor] += 1
            else:
                self.refused = reply or b"nobody listens"

        inbox, token = self._client.expect(take)
        self._under_way += 1
        self._client.publish_with(headers, f"aether.{self._pace.namespace}.cmd.account.a{actor}.Deposit".encode(), DEPOSIT, inbox)


async def main(text: str) -> None:
    """Send, and print what was accepted."""
    pace = msgspec.json.decode(text, type=Pace)
    client = await connect(pace.port)
    pacer = _Pacer(client, pace)
    await pacer.run()
    print(msgspec.json.encode(pacer.accepted).decode(), flush=True)
    client.close()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1]))
