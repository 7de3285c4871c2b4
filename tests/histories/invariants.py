"""What every history of an actor keeps, whatever happened to its pods, its links and its callers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from aether_api.envelope import Event, StoredCommit
from aether_api.identity import ActorId
from aether_api.messages import Reply
from aether_runtime.ports import CommitLog


async def read_history(events: CommitLog, actor: ActorId) -> list[StoredCommit]:
    """Read every commit of an actor, oldest first."""
    head = await events.read_head(actor)
    if head is None:
        return []
    return [commit async for batch in events.read_commits(actor, head) for commit in batch]


def events_of(commits: Iterable[StoredCommit]) -> list[Event]:
    """Return all events, oldest first."""
    return [event for commit in commits for event in commit.events()]


def check_log(commits: Sequence[StoredCommit]) -> None:
    """Versions count from 1 without gaps, ordinals from 0, epochs and event times never fall, and no command is stored twice."""
    events = events_of(commits)
    assert [event.version for event in events] == list(range(1, len(events) + 1)), "versions have gaps"
    assert [commit.n for commit in commits] == list(range(len(commits))), "ordinals have gaps"
    assert [commit.epoch for commit in commits] == sorted(commit.epoch for commit in commits), "an epoch fell"
    assert [event.time for event in events] == sorted(event.time for event in events), "time ran back"
    commits_of = Counter(command for commit in commits for command in {event.command_id for event in commit.events()})
    assert [command for command, count in commits_of.items() if command and count > 1] == [], "a command took effect twice"


def check_answers(commits: Sequence[StoredCommit], replies: Iterable[Reply]) -> None:
    """What was acknowledged is stored, at the version that its caller was told."""
    stored = {event.version: event for event in events_of(commits)}
    for reply in replies:
        if reply.outcome != "accepted" or reply.dry_run:
            continue
        assert reply.events, "accepted without events"
        for event in reply.events:
            found = stored.get(event.version)
            assert found is not None, f"{reply.command_id} was acknowledged at version {event.version}, which the log does not hold"
            assert (found.command_id, found.type, found.data) == (reply.command_id, event.type, event.data)
        assert reply.version == reply.events[-1].version
