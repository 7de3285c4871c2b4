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
from abc import ABC, abstractmethod
from math import inf
from typing import Generic, TypeVar

from aether_api.errors import AetherError, NoResponders, PermissionDenied, RequestTimeout
from aether_api.headers import FIRST_LINE
from aether_nats.message import Message

INBOX_PREFIX = "_INBOX"
"""The prefix that servers' default permissions and other clients expect."""

STATUS_NO_RESPONDERS = 503

STATUS_AT = len(FIRST_LINE)
"""Where a blank tells that the server speaks itself; a look there is a tenth of reading the status, and a batch has a thousand messages."""


_T = TypeVar("_T")


class Exchange(ABC):
    """A request that waits; `take` and `fail` run in the read loop, must not raise and must not block.

    Attributes:
        subject: what was asked, for messages.
        deadline: monotonic time of the loop; set by the table.
    """

    __slots__ = ("deadline", "subject")

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.deadline = inf

    @abstractmethod
    def take(self, message: Message) -> bool:
        """Take a reply and return whether it was the last one."""

    @abstractmethod
    def fail(self, error: AetherError) -> None:
        """End without a reply: nobody serves the subject, the deadline has passed, or the link is gone."""


class Awaited(Exchange, Generic[_T]):
    """A request whose future somebody awaits, or has given up."""

    __slots__ = ("future",)

    def __init__(self, subject: str, future: asyncio.Future[_T]) -> None:
        super().__init__(subject)
        self.future = future

    def settle(self, result: _T) -> bool:
        """Give the result, unless the future has one; True, as there is nothing more to take."""
        if not self.future.done():
            self.future.set_result(result)
        return True

    def fail(self, error: AetherError) -> None:
        """Fail the future, unless it is done."""
        if not self.future.done():
            self.future.set_exception(error)


class _One(Awaited[Message]):
    """A request for one reply."""

    __slots__ = ()

    def take(self, message: Message) -> bool:
        return self.settle(message)


class _Many(Awaited[list[Message]]):
    """A request for many replies; a message with a status ends the row."""

    __slots__ = ("collected",)

    def __init__(self, subject: str, future: asyncio.Future[list[Message]]) -> None:
        super().__init__(subject, future)
        self.collected: list[Message] = []

    def take(self, message: Message) -> bool:
        self.collected.append(message)
        return message.raw_headers[STATUS_AT : STATUS_AT + 1] == b" " and self.settle(self.collected)


class _Each(_Many):
    """Several questions with one reply each; `left` are those without."""

    __slots__ = ("left",)

    def __init__(self, subject: str, count: int, future: asyncio.Future[list[Message]]) -> None:
        super().__init__(subject, future)
        self.left = count

    def take(self, message: Message) -> bool:
        self.collected.append(message)
        self.left -= 1
        return not self.left and self.settle(self.collected)


class RequestTable:
    """The requests of one connection that wait for replies; it is the subscriber to their inbox."""

    sid = 0
    queue = ""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._inbox = f"{INBOX_PREFIX}.{secrets.token_hex(11)}"
        self._token_start = len(self._inbox) + 1
        self._waiting: dict[bytes, Exchange] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_due = inf

    @property
    def subject(self) -> str:
        """The subject that all replies arrive on."""
        return f"{self._inbox}.*"

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, subject: str, timeout_s: float) -> tuple[str, asyncio.Future[Message]]:
        """Register a request and return its reply subject and the future of its one reply."""
        future: asyncio.Future[Message] = self._loop.create_future()
        return self.register(_One(subject, future), timeout_s), future

    def add_many(self, subject: str, timeout_s: float) -> tuple[str, asyncio.Future[list[Message]]]:
        """Register a request whose replies end with a status message, which is the last of the list."""
        future: asyncio.Future[list[Message]] = self._loop.create_future()
        return self.register(_Many(subject, future), timeout_s), future

    def add_each(self, subject: str, count: int, timeout_s: float) -> tuple[str, asyncio.Future[list[Message]]]:
        """Register `count` questions and return their reply subject and the future of all replies, in the order of their coming."""
        future: asyncio.Future[list[Message]] = self._loop.create_future()
        return self.register(_Each(subject, count, future), timeout_s), future

    def register(self, exchange: Exchange, timeout_s: float) -> str:
        """Register a request and return its reply subject."""
        self._count = count = self._count + 1
        exchange.deadline = deadline = self._loop.time() + timeout_s
        self._waiting[b"%x" % count] = exchange
        if deadline < self._timer_due:
            self._start_timer(deadline)
        return f"{self._inbox}.{count:x}"

    def discard(self, reply: str) -> None:
        """Forget a request that was never sent."""
        self._waiting.pop(reply[self._token_start :].encode(), None)

    def __call__(self, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Hand a reply to its request; replies that nobody awaits any more are dropped."""
        token = subject[self._token_start :]
        exchange = self._waiting.get(token)
        if exchange is None:
            return
        message = Message(subject, reply, raw_headers, payload)
        if raw_headers and not payload and message.status == STATUS_NO_RESPONDERS:
            del self._waiting[token]
            exchange.fail(NoResponders(f"nobody serves {exchange.subject}"))
        elif exchange.take(message):
            self._waiting.pop(token, None)

    def fail_denied(self, denied: PermissionDenied, *, exact: bool) -> None:
        """End the requests that wait for an answer to what was published on a subject, because the server dropped it.

        Args:
            exact: whether the subject has the case in which it was sent.
        """
        if denied.subject.lower().startswith(f"{self._inbox}.".lower()):  # a flush, which is a message to ourselves
            token = denied.subject[self._token_start :].encode()
            tokens, denied = [token] if token in self._waiting else [], PermissionDenied(f"{INBOX_PREFIX}.>", denied.action)
        else:
            tokens = [token for token, exchange in self._waiting.items() if (exchange.subject if exact else exchange.subject.lower()) == denied.subject]
        for token in tokens:
            self._waiting.pop(token).fail(denied)

    def fail_all(self, error: AetherError) -> None:
        """End every waiting request, because the link is gone, or no answer can come."""
        waiting, self._waiting = self._waiting, {}
        self._stop_timer()
        for exchange in waiting.values():
            exchange.fail(error)

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
        late = [token for token, exchange in self._waiting.items() if exchange.deadline <= now]
        for token in late:
            exchange = self._waiting.pop(token)
            exchange.fail(RequestTimeout(f"no answer on {exchange.subject} in time"))
        self._stop_timer()
        if self._waiting:
            self._start_timer(min(exchange.deadline for exchange in self._waiting.values()))


class DeniedRequests(RequestTable):
    """Stands in for the table where the server denies the inbox: no answer could come, so nothing is asked."""

    def register(self, exchange: Exchange, timeout_s: float) -> str:
        """Refuse.

        Raises:
            PermissionDenied: always.
        """
        raise build_inbox_denial()


def build_inbox_denial() -> PermissionDenied:
    """Return the error of whoever waits for an answer that the server lets nobody hear."""
    return PermissionDenied(f"{INBOX_PREFIX}.>", "subscribe", consequence="no answer can reach it")
