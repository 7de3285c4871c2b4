"""What was heard of a stream is counted in stretches, of which none is judged before its announcements can have come."""

from __future__ import annotations

from aether_nats.hearing import Hearing, Stretch


def test_each_announcement_counts_in_the_stretch_in_which_it_lies_whenever_it_comes() -> None:
    hearing = Hearing()
    hearing.begin(10, 0.0)
    for sequence in (9, 10, 11, 12):
        hearing.note(sequence)
    assert hearing.turn(14, 1.0) == Stretch(10, 10, 0), "before the first look nothing can be judged"
    for sequence in (14, 15):  # 13 was lost
        hearing.note(sequence)
    assert hearing.turn(15, 2.0) == Stretch(10, 14, 3)
    assert hearing.turn(15, 3.0) == Stretch(14, 15, 1)


def test_what_was_read_is_not_judged_again() -> None:
    hearing = Hearing()
    hearing.begin(0, 0.0)
    hearing.note(1)
    hearing.turn(5, 1.0)
    hearing.begin(6, 2.0)
    hearing.note(3)
    hearing.note(7)
    assert [hearing.turn(7, 3.0), hearing.turn(7, 4.0)] == [Stretch(6, 6, 0), Stretch(6, 7, 1)]
    assert hearing.since_s == 4.0


def test_what_was_heard_is_whole_up_to_the_highest_unless_one_is_missing() -> None:
    hearing = Hearing()
    hearing.begin(10, 0.0)
    assert hearing.whole_to() == 10
    hearing.note(11)
    hearing.note(13)
    assert hearing.whole_to() == 10
    hearing.note(12)
    assert hearing.whole_to() == 13
    hearing.turn(15, 1.0)
    hearing.note(14)
    assert hearing.whole_to() == 14
    hearing.turn(15, 2.0)
    assert hearing.whole_to() == 15
