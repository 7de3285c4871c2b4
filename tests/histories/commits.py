"""Commits of actors as a foreign writer makes them: for tests of the log and of those who read it."""

from __future__ import annotations

from msgspec.structs import replace

from aether_api.commit_index import NO_COMMITS
from aether_api.envelope import Commit, Event, StoredCommit, build_event_id, build_source, encode_event, encode_fields, join_events
from aether_api.identity import ActorId, Epoch
from aether_nats.journal import Journal

TIME = "2026-07-01T12:00:00.000000Z"


def build_events(actor: ActorId, first: int, count: int, *, incarnation: int = 0, type: str = "Deposited") -> list[Event]:
    """Return events whose amount is their version."""
    versions = range(first, first + count)
    return [Event("1.0", build_event_id(incarnation, version), build_source(actor), type, TIME, encode_fields({"amount": version})) for version in versions]


def build_next(actor: ActorId, head: StoredCommit | None, *, events: int = 1, type: str = "Deposited") -> Commit:
    """Return the commit that follows `head`."""
    first = (head.last_version if head else 0) + 1
    incarnation = head.incarnation if head else 0
    index = head.next_index() if head else NO_COMMITS
    payload = join_events([encode_event(event) for event in build_events(actor, first, events, incarnation=incarnation, type=type)])
    id = f"{actor.id}-{incarnation}-{index.n}"
    return Commit(id, actor, head.sequence if head else 0, first, first + events - 1, index, Epoch(1), "pod/boot", "account@x", payload, incarnation)


async def append_events(journal: Journal, actor: ActorId, commits: int = 1, *, events: int = 1, type: str = "Deposited") -> int:
    """Append commits one after the other and return the actor's version."""
    for _ in range(commits):
        await journal.append(build_next(actor, await journal.read_head(actor), events=events, type=type))
    head = await journal.read_head(actor)
    return head.last_version if head else 0


async def append_broken(journal: Journal, actor: ActorId) -> None:
    """Append something whose headers are those of a commit and whose payload is none."""
    await journal.append(replace(build_next(actor, await journal.read_head(actor)), payload=b"no events"))
