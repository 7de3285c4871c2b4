"""Core NATS: sessions, subscriptions, queue groups, requests without responders."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from tests.simulation.server.hazards import Hazards

VERSION: Final = "2.15.0"
MAX_PAYLOAD: Final = 8 << 20

Send = Callable[[bytes], None]


class Clock(Protocol):
    """Whose time it is: that of a simulation, or the real one."""

    def now_s(self) -> float:
        """Return unix time."""
        ...

    def later(self, delay_s: float, work: Callable[[], None]) -> None:
        """Do something later; at once for no delay."""
        ...


@dataclass(frozen=True, slots=True)
class Publication:
    """A message that a client published; `headers` is the whole block, empty without."""

    subject: str
    reply: str
    headers: bytes
    payload: bytes


class Engine(Protocol):
    """Who takes messages beside subscribers: JetStream."""

    def take(self, publication: Publication) -> bool:
        """Take a message; False if it is none of theirs."""
        ...

    def end(self) -> None:
        """Forget what is in memory only: the server ends."""
        ...


@dataclass(eq=False, slots=True)
class Subscription:
    """One subscription of a session."""

    session: Session
    sid: bytes
    tokens: tuple[str, ...]
    queue: str


class Broker:
    """Routes messages between sessions."""

    def __init__(self, clock: Clock, hazards: Hazards | None = None) -> None:
        self.clock = clock
        self.hazards = hazards or Hazards()
        self.engine: Engine | None = None
        self.trace: Callable[[str], None] = lambda line: None
        self._sessions: dict[int, Session] = {}
        self._subscriptions: dict[tuple[str, ...], list[Subscription]] = {}
        self._count = 0

    def open_session(self, name: str, send: Send) -> Session:
        """Greet a client."""
        self._count += 1
        session = self._sessions[self._count] = Session(self, self._count, name, send)
        info = {
            "server_id": "SIMULATED",
            "server_name": "simulated",
            "version": VERSION,
            "proto": 1,
            "headers": True,
            "max_payload": MAX_PAYLOAD,
            "jetstream": True,
            "client_id": self._count,
        }
        send(f"INFO {json.dumps(info)}\r\n".encode())
        return session

    def drop_session(self, session: Session) -> None:
        """Forget a client with its subscriptions."""
        self._sessions.pop(session.id, None)
        self._keep(lambda found: found.session is not session)

    def close_all(self) -> None:
        """Forget all clients: the server ends."""
        for session in list(self._sessions.values()):
            session.close()
        if self.engine is not None:
            self.engine.end()

    def subscribe(self, session: Session, sid: bytes, subject: str, queue: str) -> None:
        """Add a subscription."""
        tokens = tuple(subject.split("."))
        self._subscriptions.setdefault(_beginning(tokens), []).append(Subscription(session, sid, tokens, queue))

    def unsubscribe(self, session: Session, sid: bytes) -> None:
        """End a subscription."""
        self._keep(lambda found: found.session is not session or found.sid != sid)

    def publish(self, session: Session, message: Publication) -> None:
        """Take a message of a client."""
        self.trace(f"{session.name} > {message.subject} {len(message.payload)}")
        if message.subject.startswith("$JS.") and self.hazards.loses_message(message.subject):
            return
        is_taken = self.engine is not None and self.engine.take(message)
        if not self.route(message) and not is_taken and message.reply:
            session.refuse(message.reply)

    def route(self, message: Publication) -> int:
        """Hand a message to all who subscribed, one of each queue group; returns how many they were, lost messages too."""
        groups: dict[str, list[Subscription]] = {}
        found = self._find(message.subject)
        for subscription in found:
            if subscription.queue:
                groups.setdefault(subscription.queue, []).append(subscription)
        chosen = [subscription for subscription in found if not subscription.queue]
        chosen += [members[self.hazards.choose(len(members))] for members in groups.values()]
        for subscription in chosen:
            if not self.hazards.loses_message(message.subject):
                subscription.session.deliver(subscription.sid, message)
            else:
                self.trace(f"lost {message.subject} to {subscription.session.name}")
        return len(chosen)

    def answer(self, reply: str, *messages: tuple[bytes, bytes]) -> None:
        """Send headers and payloads to whoever asked, a little later; of several the last may be lost."""
        if not reply:
            return
        arrive = messages[: self.hazards.cut_train(len(messages))]
        self.clock.later(self.hazards.answer_delay_s(), partial(self.route_all, [Publication(reply, "", headers, payload) for headers, payload in arrive]))

    def route_all(self, messages: Sequence[Publication]) -> None:
        """Hand several messages on, one after the other."""
        for message in messages:
            self.route(message)

    def forward(self, inbox: str, message: Publication) -> None:
        """Hand a message to who subscribed to an inbox, under its own subject: so consumers deliver."""
        for subscription in self._find(inbox):
            subscription.session.deliver(subscription.sid, message)

    def _find(self, subject: str) -> list[Subscription]:
        """Return who subscribed; most subjects are those of replies, so only subscriptions that begin alike are looked at."""
        tokens = tuple(subject.split("."))
        alike = (*self._subscriptions.get(tokens[:2], ()), *self._subscriptions.get((), ()))
        return [subscription for subscription in alike if matches(subscription.tokens, tokens)]

    def _keep(self, is_kept: Callable[[Subscription], bool]) -> None:
        self._subscriptions = {key: kept for key, found in self._subscriptions.items() if (kept := [subscription for subscription in found if is_kept(subscription)])}


def _beginning(pattern: tuple[str, ...]) -> tuple[str, ...]:
    """Return the first two tokens of a pattern, nothing if they hold wildcards."""
    return () if {"*", ">"} & set(pattern[:2]) else pattern[:2]


class Session:
    """One client, as the server sees it."""

    def __init__(self, broker: Broker, id: int, name: str, send: Send) -> None:
        self.id = id
        self.name = name
        self._broker = broker
        self._send = send
        self._buffer = b""
        self._options: dict[str, Any] = {}
        self._is_closed = False

    def receive(self, data: bytes) -> None:
        """Take bytes of the client."""
        self._buffer += data
        while not self._is_closed and self._take_one():
            pass

    def close(self) -> None:
        """Forget the client."""
        if not self._is_closed:
            self._is_closed = True
            self._broker.drop_session(self)

    def deliver(self, sid: bytes, message: Publication) -> None:
        """Send a message to the client."""
        if self._is_closed:
            return
        route = b" ".join([message.subject.encode(), sid, *([message.reply.encode()] if message.reply else [])])
        if message.headers:
            line = b"HMSG %b %d %d\r\n" % (route, len(message.headers), len(message.headers) + len(message.payload))
        else:
            line = b"MSG %b %d\r\n" % (route, len(message.payload))
        self._send(line + message.headers + message.payload + b"\r\n")

    def refuse(self, reply: str) -> None:
        """Tell the client that nobody serves what it asked."""
        if self._options.get("no_responders"):
            self._broker.route(Publication(reply, "", b"NATS/1.0 503\r\n\r\n", b""))

    def _take_one(self) -> bool:
        """Carry out one operation of the buffer; False if there is no whole one."""
        end = self._buffer.find(b"\r\n")
        if end < 0:
            return False
        verb, *words = self._buffer[:end].split()
        rest = end + 2
        match verb.upper():
            case b"PUB" | b"HPUB":
                size = int(words[-1])
                if len(self._buffer) < rest + size + 2:
                    return False
                body, rest = self._buffer[rest : rest + size], rest + size + 2
                self._buffer = self._buffer[rest:]
                self._publish(words, body, has_headers=verb.upper() == b"HPUB")
                return True
            case b"SUB":
                self._broker.subscribe(self, words[-1], words[0].decode(), words[1].decode() if len(words) == 3 else "")
            case b"UNSUB":
                self._broker.unsubscribe(self, words[0])
            case b"PING":
                self._send(b"PONG\r\n")
            case b"CONNECT":
                with suppress(ValueError):
                    self._options = json.loads(self._buffer[len("CONNECT ") : end])
            case _:
                pass
        self._buffer = self._buffer[rest:]
        return True

    def _publish(self, words: list[bytes], body: bytes, *, has_headers: bool) -> None:
        route = words[: -2 if has_headers else -1]
        split = int(words[-2]) if has_headers else 0
        reply = route[1].decode() if len(route) == 2 else ""
        self._broker.publish(self, Publication(route[0].decode(), reply, body[:split], body[split:]))


def matches(pattern: tuple[str, ...], tokens: tuple[str, ...]) -> bool:
    """Tell whether a subject matches a pattern."""
    if pattern and pattern[-1] == ">":
        return len(tokens) >= len(pattern) and matches(pattern[:-1], tokens[: len(pattern) - 1])
    return len(pattern) == len(tokens) and all(part in ("*", token) for part, token in zip(pattern, tokens, strict=True))


def matches_subject(pattern: str, subject: str) -> bool:
    """Tell whether a subject matches a pattern, both as text."""
    return matches(tuple(pattern.split(".")), tuple(subject.split(".")))


def overlaps(one: str, other: str) -> bool:
    """Tell whether two patterns have a subject in common."""
    return _overlap(one.split("."), other.split("."))


def _overlap(one: list[str], other: list[str]) -> bool:
    if not one or not other:
        return not one and not other
    if one[0] == ">" or other[0] == ">":
        return True
    return (one[0] == other[0] or "*" in (one[0], other[0])) and _overlap(one[1:], other[1:])
