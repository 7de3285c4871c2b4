"""Requests that wait for replies: one inbox, one table, one timer.

Every request gets a token below the connection's own inbox. A reply is found by one look into a dictionary. There is no
timer for each request: one timer fires at the earliest deadline, looks through the table and finds the next one, so with
equal time-outs it fires about once in a time-out, however many requests pass (measured against `asyncio.wait_for`: the
time-out handles alone were a third of nats-py's time).

The table knows nothing of connections; it is told of replies, of time and of a lost link.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf

from aether_api.errors import AetherError, NoResponders, RequestTimeout
from aether_nats.message import Message

INBOX_PREFIX = "_INBOX"
"""The prefix that servers' default permissions and other clients expect."""

STATUS_NO_RESPONDERS = 503


@dataclass(slots=True)
class _Waiter:
    """One request; a request for many replies collects them until a message with a status ends the row."""

    subject: str
    deadline: float
    one: asyncio.Future[Message] | None = None
    many: asyncio.Future[list[Message]] | None = None
    collected: list[Message] = field(default_factory=list[Message])

    def fail(self, error: AetherError) -> None:
        for future in (self.one, self.many):
            if future is not None and not future.done():
                future.set_exception(error)


class RequestTable:
    """The requests of one connection that wait for replies."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox = f"{INBOX_PREFIX}.{secrets.token_hex(11)}"
        self._token_start = len(self._inbox) + 1
        self._waiting: dict[bytes, _Waiter] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf

    @property
    def wildcard(self) -> str:
        """The subject that all replies arrive on."""
        return f"{self._inbox}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, subject: str, timeout_s: float) -> tuple[str, asyncio.Future[Message]]:
        """Register a request and return its reply subject and the future of its one reply."""
        future: asyncio.Future[Message] = self._loop.create_future()
        return self._register(_Waiter(subject, self._loop.time() + timeout_s, one=future)), future

    def add_many(self, subject: str, timeout_s: float) -> tuple[str, asyncio.Future[list[Message]]]:
        """Register a request whose replies end with a status message, which is the last of the list."""
        future: asyncio.Future[list[Message]] = self._loop.create_future()
        return self._register(_Waiter(subject, self._loop.time() + timeout_s, many=future)), future

    def discard(self, reply: str) -> None:
        """Forget a request that was never sent."""
        self._waiting.pop(reply[self._token_start :].encode(), None)

    def on_reply(self, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Hand a reply to its request; replies that nobody awaits any more are dropped."""
        token = subject[self._token_start :]
        waiter = self._waiting.get(token)
        if waiter is None:
            return
        message = Message(subject, reply, raw_headers, payload)
        if waiter.many is not None and not message.status:
            waiter.collected.append(message)
            return
        del self._waiting[token]
        _finish(waiter, message)

    def fail_all(self, error: AetherError) -> None:
        """End every waiting request, because the link is gone."""
        waiting, self._waiting = self._waiting, {}
        self._stop_timer()
        for waiter in waiting.values():
            waiter.fail(error)

    def _register(self, waiter: _Waiter) -> str:
        self._count += 1
        token = f"{self._count:x}"
        self._waiting[token.encode()] = waiter
        if waiter.deadline < self._timer_due:
            self._start_timer(waiter.deadline)
        return f"{self._inbox}.{token}"

    def _start_timer(self, due: float) -> None:
        self._stop_timer()
        self._timer_due = due
        self._timer = self._loop.call_at(due, self._sweep)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_due = None, inf

    def _sweep(self) -> None:
        now = self._loop.time()
        late = [token for token, waiter in self._waiting.items() if waiter.deadline <= now]
        for token in late:
            waiter = self._waiting.pop(token)
            waiter.fail(RequestTimeout(f"no answer on {waiter.subject} in time"))
        self._stop_timer()
        if self._waiting:
            self._start_timer(min(waiter.deadline for waiter in self._waiting.values()))


def _finish(waiter: _Waiter, message: Message) -> None:
    if message.status == STATUS_NO_RESPONDERS and not message.payload:
        waiter.fail(NoResponders(f"nobody serves {waiter.subject}"))
    elif waiter.many is not None:
        if not waiter.many.done():
            waiter.many.set_result([*waiter.collected, message])
    elif waiter.one is not None and not waiter.one.done():
        waiter.one.set_result(message)


async def await_all(futures: Sequence[asyncio.Future[Message]]) -> list[Message]:
    """Return all replies in order, or raise the first failure and give the others up."""
    try:
        return [await future for future in futures]
    finally:
        for future in futures:
            if not future.cancel() and not future.cancelled():
                future.exception()  # looked at, so that asyncio does not report it as forgotten
