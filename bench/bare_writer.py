"""One writer that appends and waits for the ack, again and again: who feels it when others read.

Usage: `python -m bench.bare_writer PORT SUBJECT`; prints `ready`, then for each line on its input the appends a second since
the line before.
"""

from __future__ import annotations

import asyncio
import sys
import time

import uvloop

from bench.account import DEPOSIT
from bench.wire import BareClient, connect, parse_ack


class _Writer:
    """Appends for ever, and counts."""

    def __init__(self, client: BareClient, subject: bytes) -> None:
        self._client = client
        self._subject = subject
        self.count = 0

    async def run(self) -> None:
        """Append until cancelled."""
        sequence = 0
        while True:
            sequence = parse_ack(await self._append(sequence))
            self.count += 1

    def _append(self, expected: int) -> asyncio.Future[bytes]:
        client = self._client
        acked: asyncio.Future[bytes] = client.loop.create_future()

        def take(_headers: bytes, ack: bytes) -> None:
            del client.replies[token]
            acked.set_result(ack)

        inbox, token = client.expect(take)
        client.publish_with(b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % expected, self._subject, DEPOSIT, inbox)
        return acked


async def main(port: int, subject: str) -> None:
    """Write until the input ends."""
    loop = asyncio.get_running_loop()
    writer = _Writer(await connect(port), subject.encode())
    async with asyncio.TaskGroup() as tasks:
        work = tasks.create_task(writer.run(), name="writer")
        print("ready", flush=True)
        count, since_s = 0, time.perf_counter()
        while await loop.run_in_executor(None, sys.stdin.readline):
            now_count, now_s = writer.count, time.perf_counter()
            print((now_count - count) / (now_s - since_s), flush=True)
            count, since_s = now_count, now_s
        work.cancel()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1]), sys.argv[2]))
