"""The bare loops for commands: request, append, reply, and nothing else. What Python can do without semantics.

They validate the command, decide, append with the expected sequence (so that they are as safe against a second writer as
ours) and answer after the ack. They have no idempotency, no envelope, no errors, no recovery, no metrics, no life cycle.
`single` stores one event a message, `group` all commands that waited for an actor.

Usage: `python -m bench.bare_commands KIND PORT NAMESPACE PARTITIONS`; prints `ready` and runs until it is ended.
"""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from functools import cache, partial

import msgspec
import uvloop

from aether_api.identity import parse_actor_id
from aether_api.subjects import event_subject
from bench.account import Answer, Change, Entry
from bench.wire import BareClient, connect, parse_ack

decode_change = msgspec.json.Decoder(Change).decode
encode = msgspec.json.Encoder().encode
REFUSED = encode(Answer("rejected", 0, 0))
TIME = "2026-11-24T20:30:00.000000Z"


class Account:
    """One actor's state and what waits for it."""

    __slots__ = ("balance", "busy", "id", "mailbox", "sequence", "subject", "version")

    def __init__(self, id: str, subject: bytes) -> None:
        self.id = id
        self.subject = subject
        self.balance = self.version = self.sequence = 0
        self.busy = False
        self.mailbox: deque[tuple[bytes, bytes, bytes]] = deque()

    def decide(self, command: bytes, change: Change) -> Entry | None:
        """Return the event of a command, or None for a rejection."""
        if change.amount <= 0:
            return None
        if command == b"Deposit":
            return Entry("Deposited", self.version + 1, self.id, change.amount, TIME, "c-00000000", change.note)
        if self.balance < change.amount:
            return None
        return Entry("Withdrawn", self.version + 1, self.id, change.amount, TIME, "c-00000000", change.note)

    def apply(self, entry: Entry) -> None:
        """Fold an event."""
        self.balance += entry.amount if entry.type == "Deposited" else -entry.amount
        self.version = entry.version


class SingleLoop:
    """One message for each event."""

    def __init__(self, client: BareClient, namespace: str, partitions: int) -> None:
        self._client = client
        self._find = cache(partial(_make_account, namespace, partitions))

    def on_command(self, subject: bytes, reply: bytes, _headers: bytes, payload: bytes) -> None:
        """Take a command."""
        *_, actor, command = subject.split(b".")
        account = self._find(actor)
        if account.busy:
            account.mailbox.append((reply, command, payload))
        else:
            self.start(account, reply, command, payload)

    def start(self, account: Account, reply: bytes, command: bytes, payload: bytes) -> None:
        """Decide a command and append its event."""
        entry = account.decide(command, decode_change(payload))
        if entry is None:
            self._client.publish(reply, REFUSED)
            return
        account.busy = True
        client = self._client

        def on_ack(_headers: bytes, ack: bytes) -> None:
            del client.replies[token]
            account.sequence = parse_ack(ack)
            account.apply(entry)
            client.publish(reply, encode(Answer("accepted", account.version, account.balance)))
            account.busy = False
            while account.mailbox and not account.busy:
                self.start(account, *account.mailbox.popleft())

        inbox, token = client.expect(on_ack)
        client.publish_with(b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % account.sequence, account.subject, encode(entry), inbox)


class GroupLoop(SingleLoop):
    """One message for all commands that waited while the last one was under way."""

    def start(self, account: Account, reply: bytes, command: bytes, payload: bytes) -> None:
        """Decide a command and append its event."""
        account.mailbox.appendleft((reply, command, payload))
        self._next(account)

    def _next(self, account: Account) -> None:
        client = self._client
        entries: list[Entry] = []
        answers: list[tuple[bytes, bytes]] = []
        while account.mailbox:
            reply, command, payload = account.mailbox.popleft()
            entry = account.decide(command, decode_change(payload))
            if entry is None:
                client.publish(reply, REFUSED)
                continue
            account.apply(entry)
            entries.append(entry)
            answers.append((reply, encode(Answer("accepted", account.version, account.balance))))
        account.busy = bool(entries)
        if not entries:
            return

        def on_ack(_headers: bytes, ack: bytes) -> None:
            del client.replies[token]
            account.sequence = parse_ack(ack)
            for reply, answer in answers:
                client.publish(reply, answer)
            self._next(account)

        inbox, token = client.expect(on_ack)
        client.publish_with(b"Nats-Expected-Last-Subject-Sequence: %d\r\n" % account.sequence, account.subject, encode(entries), inbox)


def _make_account(namespace: str, partitions: int, actor: bytes) -> Account:
    id = actor.decode()
    return Account(id, event_subject(parse_actor_id(namespace, "account", id), partitions).encode())


async def main(kind: str, port: int, namespace: str, partitions: int) -> None:
    """Serve the accounts of a namespace until cancelled."""
    client = await connect(port)
    loop = (GroupLoop if kind == "group" else SingleLoop)(client, namespace, partitions)
    for channel in ("cmd", "call"):
        client.subscribe(f"aether.{namespace}.{channel}.*.*.*".encode(), loop.on_command)
    await client.ping()
    print("ready", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])))
