"""A subscriber that takes what it is told ends with every event once and in order, whatever announcements were lost."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from aether_api.envelope import StoredCommit
from aether_api.identity import ActorId, Epoch, parse_actor_id
from aether_nats.deliveries import ActorVersion, Gap, Positions, Reset, Step, StreamMark, Taken, Unreadable

ACTORS = [parse_actor_id("shop", "account", id) for id in ("a", "b", "c")]
A = ACTORS[0]


def build_commit(sequence: int, first: int, last: int, *, incarnation: int = 0, tombstone: bool = False) -> StoredCommit:
    return StoredCommit(f"c{sequence}", sequence, 0, "", first, last, Epoch(1), "", "", incarnation, tombstone, b"[]")


def build_mark(begin: int = 0) -> StreamMark:
    return StreamMark("AETHER_shop_EVT_0", "shop", 0, begin=begin, seen=begin)


@dataclass
class Log:
    """One stream: what was stored, with the sequence of the actor's commit before it."""

    stored: list[tuple[ActorId, int, StoredCommit]] = field(default_factory=list[tuple[ActorId, int, StoredCommit]])

    def append(self, actor: ActorId, events: int) -> None:
        """Store a commit of so many events, or a tombstone for none."""
        head = self.head(actor)
        sequence, last_sequence = len(self.stored) + 1, head.sequence if head else 0
        version, incarnation = (head.last_version, head.incarnation) if head else (0, 0)
        if events:
            commit = build_commit(sequence, version + 1, version + events, incarnation=incarnation)
        else:
            commit = build_commit(sequence, 0, 0, incarnation=incarnation + 1, tombstone=True)
        self.stored.append((actor, last_sequence, commit))

    def head(self, actor: ActorId) -> StoredCommit | None:
        return next((commit for found, _, commit in reversed(self.stored) if found == actor), None)

    def read(self, gap: Gap) -> list[int]:
        """Return the versions of a gap as the log has them."""
        commits = [commit for actor, _, commit in self.stored if actor == gap.actor and gap.after_sequence < commit.sequence <= gap.to_sequence]
        return [version for commit in commits if commit.incarnation == gap.incarnation and not commit.tombstone for version in versions_of(commit) if version >= gap.from_version]


def versions_of(commit: StoredCommit) -> range:
    return range(commit.first_version, commit.last_version + 1)


@dataclass
class Reader:
    """A subscriber that fetches every gap."""

    log: Log
    seen: dict[ActorId, list[int]] = field(default_factory=lambda: {actor: [] for actor in ACTORS})

    def take(self, steps: list[Step]) -> None:
        for step in steps:
            match step:
                case Taken(actor, commit):
                    self.seen[actor] += versions_of(commit)
                case Gap():
                    self.seen[step.actor] += self.log.read(step)
                case Reset():
                    self.seen[step.actor] = []
                case Unreadable():
                    raise AssertionError(step.reason)


histories = st.lists(st.tuples(st.sampled_from(ACTORS), st.integers(0, 3), st.booleans()), max_size=40)


@given(histories, st.integers(0, 10), st.booleans())
def test_whatever_announcements_are_lost_or_repeated_every_event_is_told_once_and_in_order(history: list[tuple[ActorId, int, bool]], before: int, repeated: bool) -> None:
    log, mark, positions = Log(), build_mark(), Positions(100)
    reader = Reader(log)
    for actor, events, _ in history[:before]:
        log.append(actor, events or 1)
    mark.begin = len(log.stored)
    at_begin = {actor: (head.last_version if (head := log.head(actor)) else 0) for actor in ACTORS}
    for actor, events, lost in history[before:]:
        log.append(actor, events)
        for _ in range(0 if lost else 1 + repeated):
            reader.take(positions.take(mark, *log.stored[-1]))
    for actor in ACTORS:
        head = log.head(actor)
        if head is not None:
            reader.take(positions.take_head(mark, actor, head))
            first = at_begin[actor] + 1 if not head.incarnation else 1
            assert reader.seen[actor] == list(range(first, head.last_version + 1))


@given(histories, st.integers(0, 5))
def test_who_knows_some_versions_is_told_all_later_ones(history: list[tuple[ActorId, int, bool]], known: int) -> None:
    log, mark, positions = Log(), build_mark(), Positions(100)
    reader = Reader(log)
    for actor, events, _ in history:
        log.append(actor, events or 1)
    head = log.head(A)
    reader.take(positions.take_known(mark, A, ActorVersion(known), head))
    last = head.last_version if head else 0
    assert reader.seen[A] == list(range(known + 1 if known <= last else 1, last + 1))


def test_a_gap_names_what_was_missed_and_where_it_lies() -> None:
    positions, mark = Positions(10), build_mark()
    positions.take(mark, A, 0, build_commit(1, 1, 2))
    assert positions.take(mark, A, 7, build_commit(9, 6, 6)) == [Gap(A, 3, 5, 1, 7), Taken(A, build_commit(9, 6, 6))]


def test_an_actor_that_was_never_heard_of_begins_where_the_subscription_began() -> None:
    positions, mark = Positions(10), build_mark(begin=5)
    assert positions.take(mark, A, 4, build_commit(6, 3, 3)) == [Taken(A, build_commit(6, 3, 3))]
    missed = positions.take(mark, ACTORS[1], 7, build_commit(8, 3, 3))
    assert missed[0] == Gap(ACTORS[1], 0, 2, 5, 7)


def test_a_commit_whose_versions_do_not_follow_is_unreadable() -> None:
    positions, mark = Positions(10), build_mark()
    positions.take(mark, A, 0, build_commit(1, 1, 1))
    assert isinstance(positions.take(mark, A, 1, build_commit(2, 5, 5))[0], Unreadable)


def test_after_something_unreadable_a_stranger_s_next_commit_is_taken() -> None:
    positions, mark = Positions(10), build_mark(begin=3)
    assert positions.take_unreadable(mark, A, 4, "garbage") == [Unreadable(A, 4, "garbage")]
    assert positions.take_unreadable(mark, A, 4, "garbage") == []
    assert positions.take(mark, A, 4, build_commit(5, 9, 9)) == [Taken(A, build_commit(5, 9, 9))]


def test_an_announcement_that_denies_what_is_known_is_another_log_s() -> None:
    positions, mark = Positions(10), build_mark()
    positions.take(mark, A, 0, build_commit(5, 1, 5))
    assert positions.contradicts(mark, A, 3, 6)
    assert positions.take(mark, A, 3, build_commit(6, 4, 4)) == []
    assert positions.reset_stream(mark) == [Reset(A, 0)]
    assert positions.take(mark, A, 3, build_commit(6, 4, 4))[0] == Gap(A, 1, 3, 0, 3)


def test_the_actor_that_was_quiet_longest_is_forgotten_first_and_comes_back_without_a_gap() -> None:
    positions, mark = Positions(2), build_mark()
    for sequence, actor in enumerate(ACTORS, start=1):
        mark.hearing.note(sequence)
        positions.take(mark, actor, 0, build_commit(sequence, 1, 1))
    assert len(positions) == 2
    assert positions.get(A) is None
    assert positions.take(mark, A, 1, build_commit(4, 2, 2)) == [Taken(A, build_commit(4, 2, 2))]


def test_a_live_actor_that_is_forgotten_does_not_hide_what_a_sweep_has_still_to_read() -> None:
    positions, mark = Positions(1), build_mark()
    live, first, second = ACTORS
    positions.take(mark, live, 0, build_commit(100, 1, 1))
    for sequence, actor, told_to in ((7, first, 0), (8, second, 7)):
        assert positions.take_head(mark, actor, build_commit(sequence, 1, 1)) == [Gap(actor, 0, 1, told_to, sequence)]
        mark.note_read(1, sequence)
    assert positions.take_head(mark, first, build_commit(7, 1, 1)) == [], "it was told and forgotten"


def test_what_was_told_of_a_forgotten_actor_may_be_told_again_while_something_before_it_is_to_be_read() -> None:
    positions, mark = Positions(1), build_mark(begin=5)
    mark.read_to = 6
    mark.hearing.begin(6, 0.0)
    mark.hearing.note(8)  # 7 was not heard
    positions.take(mark, A, 0, build_commit(8, 1, 1))
    positions.take(mark, ACTORS[1], 0, build_commit(9, 1, 1))
    assert positions.take(mark, A, 8, build_commit(10, 2, 2)) == [Gap(A, 0, 1, 6, 8), Taken(A, build_commit(10, 2, 2))]
    mark.note_read(7, 10)
    positions.take(mark, ACTORS[1], 9, build_commit(11, 2, 2))
    assert positions.take(mark, A, 10, build_commit(12, 3, 3)) == [Taken(A, build_commit(12, 3, 3))]


def test_what_was_read_counts_only_where_what_lies_before_it_was_read() -> None:
    mark = build_mark()
    mark.note_read(1, 4)
    mark.note_read(6, 9)
    assert mark.known_to() == 4
    mark.hearing.begin(9, 0.0)
    mark.hearing.note(10)
    assert mark.known_to() == 4, "what was heard lies behind a hole"
    mark.note_read(5, 9)
    assert mark.known_to() == 10


@given(histories, st.integers(1, 3), st.lists(st.booleans(), min_size=40, max_size=40))
def test_with_too_few_positions_a_sweep_beside_live_announcements_still_tells_everything(history: list[tuple[ActorId, int, bool]], actors_max: int, sweep_next: list[bool]) -> None:
    log, mark, positions = Log(), build_mark(), Positions(actors_max)
    told: dict[ActorId, set[int]] = {actor: set() for actor in ACTORS}
    for actor, events, _ in history:
        log.append(actor, events or 1)
    live, swept, end = deque(log.stored[len(log.stored) // 2 :]), deque(log.stored), len(log.stored) // 2
    mark.hearing.begin(end, 0.0)
    choices = iter(sweep_next * 3)
    while live or (swept and swept[0][2].sequence <= end):
        is_swept = bool(swept) and swept[0][2].sequence <= end and (not live or next(choices))
        actor, last_sequence, commit = swept.popleft() if is_swept else live.popleft()
        if not is_swept:
            mark.hearing.note(commit.sequence)
        for step in positions.take_head(mark, actor, commit) if is_swept else positions.take(mark, actor, last_sequence, commit):
            assert isinstance(step, Taken | Gap)
            told[actor].update(versions_of(step.commit) if isinstance(step, Taken) else log.read(step))
        if is_swept:
            mark.note_read(1, commit.sequence)
    for actor in ACTORS:
        head = log.head(actor)
        assert told[actor] == set(range(1, head.last_version + 1 if head else 1))


def test_an_actor_in_another_stream_than_before_begins_anew() -> None:
    positions, old, new = Positions(10), build_mark(), StreamMark("AETHER_shop_EVT_1", "shop", 1)
    positions.take(old, A, 9, build_commit(10, 5, 5))
    assert positions.contradicts(new, A, 0, 1)
    assert positions.is_newer(new, A, 3)
    assert positions.take_head(new, A, build_commit(3, 3, 3)) == [Reset(A, 0), Gap(A, 1, 3, 0, 3)]
    assert positions.take(new, A, 3, build_commit(4, 4, 4)) == [Taken(A, build_commit(4, 4, 4))]


def test_what_was_reset_with_its_stream_is_not_reset_again_in_another() -> None:
    positions, old, new = Positions(10), build_mark(), StreamMark("AETHER_shop_EVT_1", "shop", 1)
    positions.take(old, A, 0, build_commit(10, 1, 1))
    assert positions.reset_stream(old) == [Reset(A, 0)]
    assert positions.reset_stream(old) == []
    assert not positions.contradicts(new, A, 0, 1)
    assert positions.take(new, A, 0, build_commit(1, 1, 1)) == [Taken(A, build_commit(1, 1, 1))]


def test_actors_are_told_apart_by_their_streams_in_one_pass() -> None:
    positions, marks = Positions(10), [StreamMark(f"AETHER_shop_EVT_{number}", "shop", number) for number in range(2)]
    for number, actor in enumerate(ACTORS):
        positions.take(marks[number % 2], actor, 0, build_commit(number + 1, 1, 1))
    assert positions.actors_by_stream() == {"AETHER_shop_EVT_0": [ACTORS[0], ACTORS[2]], "AETHER_shop_EVT_1": [ACTORS[1]]}


def test_what_comes_after_a_loss_does_not_take_the_place_of_what_was_seen_before() -> None:
    mark = StreamMark("AETHER_shop_EVT_0", "shop", 0, lost=False)
    mark.note_seen(5, "before")
    mark.lost = True
    mark.note_seen(7, "after")
    assert (mark.seen, mark.seen_time) == (5, "before")
    mark.lost = False
    mark.note_seen(4, "older")
    assert (mark.seen, mark.seen_time) == (5, "before")
