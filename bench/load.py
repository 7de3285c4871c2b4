"""The load generator: a closed loop of clients in one process, the same bytes whoever answers.

It must cost little, or it would measure itself: a blocking socket, one read, all replies in it, one write. Requests are joined
from parts that were formatted before; the clock is read once for each read. A client sends its next command when it has the
answer to its last one, to the actors in turn.

Usage: `python -m bench.load JSON`, with the fields of `Load`; prints a `LoadResult` as JSON.
"""

from __future__ import annotations

import secrets
import socket
import sys
import time
from array import array
from datetime import UTC, datetime
from typing import Final

import msgspec

from bench.account import DEPOSIT
from bench.errors import BenchFailed
from bench.results import find_quantile

ACCEPTED: Final = b'{"outcome":"accepted"'
"""How the reply to every command must begin."""

READ_BYTES: Final = 1 << 18
"""Bytes of one read: the replies to 512 commands fit."""

SILENCE_MAX_S: Final = 20.0
"""Seconds without any reply after which a side counts as broken; ours sends an unacknowledged append again after two."""

TRIES_MAX: Final = 100
"""Times that an actor is woken; between two tries lies `RETRY_S`, since a runtime that has just started knows no model yet."""

RETRY_S: Final = 0.1

AT_ONCE: Final = 64
"""Actors that are woken at once."""


class Load(msgspec.Struct, frozen=True):
    """What to send.

    Attributes:
        wake: send each actor one command on `call` first, so that all are live when the clock starts.
        settle: share of the seconds before the count begins.
    """

    port: int
    namespace: str
    clients: int
    actors: int
    seconds: float
    wake: bool = True
    settle: float = 0.1


class LoadResult(msgspec.Struct, frozen=True):
    """What came back: replies a second, times in milliseconds, and what the generator itself spent."""

    rate: float
    replies: int
    p50_ms: float
    p99_ms: float
    cpu_us: float


class Generator:
    """One connection that plays many clients."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._socket = socket.create_connection(("127.0.0.1", load.port), SILENCE_MAX_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._sent = 0
        self._inbox = b"_INBOX." + secrets.token_hex(6).encode()
        self._nonce = secrets.randbits(32)
        self._socket.sendall(b'CONNECT {"verbose":false,"pedantic":false,"protocol":1,"headers":true,"no_responders":true}\r\nSUB %b.* 1\r\n' % self._inbox)
        self._tail_second, self._tail = 0, b""

    def wake(self) -> None:
        """Send every actor one command on `call` and wait until each was accepted."""
        waiting = list(range(self._load.actors))
        for _ in range(TRIES_MAX):
            refused: list[int] = []
            for start in range(0, len(waiting), AT_ONCE):
                some = waiting[start : start + AT_ONCE]
                self._send([(slot, self._head("call", actor)) for slot, actor in enumerate(some)])
                refused += [some[slot] for slot in self._collect(len(some))]
            if not refused:
                return
            waiting = refused
            time.sleep(RETRY_S)
        raise BenchFailed(f"{len(waiting)} actors of {self._load.namespace} take no commands")

    def run(self) -> LoadResult:
        """Run the closed loop and return what was measured."""
        load, clients = self._load, self._load.clients
        heads = [self._head("cmd", actor) for actor in range(load.actors)]
        turns = list(range(clients))
        latencies = array("q")
        cpu_s, began = time.process_time(), time.perf_counter_ns()
        counted, end = began + int(load.settle * load.seconds * 1e9), began + int(load.seconds * 1e9)
        started = [began] * clients
        self._send([(client, heads[client % load.actors]) for client in range(clients)])
        now, replies, under_way = began, 0, clients
        while under_way:
            done = self._read()
            now = time.perf_counter_ns()
            replies += len(done)
            under_way -= len(done)
            for slot, accepted in done:
                if not accepted:
                    raise BenchFailed(f"a command to {load.namespace} was not accepted")
                if counted <= now < end:
                    latencies.append(now - started[slot])
                turns[slot] += clients
                started[slot] = now
            if now < end:
                under_way += len(done)
                self._send([(slot, heads[turns[slot] % load.actors]) for slot, _ in done])
        spent_us = (time.process_time() - cpu_s) * 1e6
        return _summarize(latencies, (end - counted) / 1e9, replies, spent_us)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _head(self, channel: str, actor: int) -> bytes:
        return f"HPUB aether.{self._load.namespace}.{channel}.account.a{actor}.Deposit ".encode() + self._inbox + b"."

    def _send(self, requests: list[tuple[int, bytes]]) -> None:
        """Send one command for each client and the beginning of its request."""
        tail = self._build_tail()
        header_bytes = tail.find(b"\r\n\r\n") + 4 + len(b"NATS/1.0\r\nAether-Command: 0123456789abcdef")
        sizes = b" %d %d\r\nNATS/1.0\r\nAether-Command: " % (header_bytes, header_bytes + len(DEPOSIT))
        parts: list[bytes] = []
        number = (self._nonce << 32) + self._sent
        for slot, head in requests:
            parts += (head, b"%d" % slot, sizes, b"%016x" % number, tail)
            number += 1
        self._sent += len(requests)
        self._socket.sendall(b"".join(parts))

    def _build_tail(self) -> bytes:
        """Return what follows the command id; it changes once a second."""
        second = int(time.time())
        if second != self._tail_second:
            sent = datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S.000000Z")
            self._tail_second, self._tail = second, f"\r\nAether-Time: {sent}\r\nAether-Timeout-Ms: 10000\r\n\r\n".encode() + DEPOSIT + b"\r\n"
        return self._tail

    def _collect(self, count: int) -> list[int]:
        """Wait for `count` replies and return the clients whose command was not accepted."""
        refused: list[int] = []
        while count:
            done = self._read()
            count -= len(done)
            refused += [slot for slot, accepted in done if not accepted]
        return refused

    def _read(self) -> list[tuple[int, bool]]:
        """Return the clients that got replies in one read, and whether their commands were accepted."""
        received = self._socket.recv(READ_BYTES)
        if not received:
            raise BenchFailed("the server closed the connection")
        data = self._rest + received
        position, end, find, prefix = 0, len(data), data.find, len(self._inbox) + 1
        done: list[tuple[int, bool]] = []
        while position < end:
            newline = find(b"\r\n", position)
            if newline < 0:
                break
            line = data[position:newline]
            if line.startswith((b"MSG", b"HMSG")):
                words = line.split(b" ")
                start, stop = newline + 2, newline + 2 + int(words[-1])
                if stop + 2 > end:
                    break
                done.append((int(words[1][prefix:]), data.startswith(ACCEPTED, start)))
                position = stop + 2
            else:
                if line == b"PING":
                    self._socket.sendall(b"PONG\r\n")
                elif line.startswith(b"-ERR"):
                    raise BenchFailed(f"the server says {line.decode()}")
                position = newline + 2
        self._rest = data[position:]
        return done


def _summarize(latencies: array[int], seconds: float, replies: int, spent_us: float) -> LoadResult:
    if not latencies:
        raise BenchFailed("no reply came while the clock ran")
    ordered = sorted(latencies)
    at = [find_quantile(ordered, share) / 1e6 for share in (0.5, 0.99)]
    return LoadResult(rate=len(ordered) / seconds, replies=replies, p50_ms=at[0], p99_ms=at[1], cpu_us=spent_us / replies)


def main(text: str) -> None:
    """Run one load and print its result."""
    load = msgspec.json.decode(text, type=Load)
    generator = Generator(load)
    if load.wake:
        generator.wake()
    print(msgspec.json.encode(generator.run()).decode(), flush=True)
    generator.close()


if __name__ == "__main__":
    main(sys.argv[1])
