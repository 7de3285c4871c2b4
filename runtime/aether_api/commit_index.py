"""The index that lets a reader find an actor's commits without scanning its subject.

JetStream finds a message by sequence at once, but the messages of one subject only by walking everything between two of
them (measured: 19 ms an actor, while writers wait). So every commit names earlier ones, in a radix-32 counter:

Commit n of an actor (n counts from 0) covers the commits [0, n). Write n in base 32; a digit d of weight 32**level stands
for d complete blocks of 32**level commits, and the index names the *last* commit of each of them, newest first. A commit
that closes a block has only full lower digits, hence names everything inside the block: a reader expands a block by
reading its last commit. 100,000 commits need about 190 bytes and three rounds of reads.

Text form (header `Aether-Back`): all levels in one list, newest commit first; the first sequence and then the differences
to the next older one, in base 36, joined by dots; empty for n = 0.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from operator import sub
from typing import Final

import msgspec

from aether_api.errors import InvalidEnvelope

RADIX: Final = 32
"""Measured against 8 and 16: fewer rounds at nearly the same size (190 B against 257 B with 16 at 100,000 commits)."""

BASE36_DIGITS_MAX: Final = 13
"""Digits of the largest sequence, 64 bits."""

_NUMBER = re.compile(f"[0-9a-z]{{1,{BASE36_DIGITS_MAX}}}")
_INDEX = re.compile(rf"{_NUMBER.pattern}(?:\.{_NUMBER.pattern})*")
_DIGITS: Final = "0123456789abcdefghijklmnopqrstuvwxyz"
_PAIR: Final = len(_DIGITS) ** 2
_PAIRS: Final[tuple[str, ...]] = tuple(high + low for high in _DIGITS for low in _DIGITS)
_SHORT: Final[tuple[str, ...]] = (*_DIGITS, *_PAIRS[len(_DIGITS) :])
"""All numbers of two digits, with and without a leading zero."""
_NOT_BEFORE: Final = "the index of a commit names one that is not before it"


@dataclass(frozen=True, slots=True)
class Block:
    """A run of commits known by its last one.

    Attributes:
        first: ordinal of the block's first commit.
        last: ordinal of its last commit.
        sequence: JetStream sequence of the last commit.
    """

    first: int
    last: int
    sequence: int


class CommitIndex(msgspec.Struct, frozen=True, gc=False):
    """The index that the next commit carries, kept as the text of the header: a live actor needs it once for each commit, and whole.

    Attributes:
        n: how many commits it covers: the ordinal of the next commit.
        text: the header's value; one that was read is checked by `decode_index`.
    """

    n: int = 0
    text: str = ""

    def appended(self, sequence: int) -> CommitIndex:
        """Return the index after commit `n` was stored at `sequence`.

        Raises `InvalidEnvelope` where the index names a commit that is not before that one.
        Mostly the newest sequence turns into a difference and the rest stays; one commit in 32 closes blocks and drops what they name.
        """
        if not self.n:
            return CommitIndex(1, _to_base36(sequence))
        if self.n % RADIX != RADIX - 1:
            newest, dot, older = self.text.partition(".")
            return CommitIndex(self.n + 1, f"{_to_base36(sequence)}.{_to_base36(sequence - int(newest, 36))}{dot}{older}")
        return CommitIndex(self.n + 1, _close_blocks(self.n, self.text.split("."), sequence))

    def extended(self, sequences: Sequence[int]) -> CommitIndex:
        """Return the index after commits `n`, `n + 1` and so on were stored; a long run costs a twentieth of appending one by one."""
        known = dict(zip([last for _, last in _list_blocks(self.n)], _decode_sequences(self.text), strict=True))
        end = self.n + len(sequences)
        named = [sequences[last - self.n] if last >= self.n else known[last] for _, last in _list_blocks(end)]
        distances = [_to_base36(newer - older) for newer, older in pairwise(named)]
        return CommitIndex(end, ".".join([*map(_to_base36, named[:1]), *distances]))

    def blocks(self) -> Iterator[Block]:
        """Yield the named blocks, newest first; together they cover [0, n) exactly."""
        for (first, last), sequence in zip(_list_blocks(self.n), _decode_sequences(self.text), strict=True):
            yield Block(first, last, sequence)


NO_COMMITS: Final = CommitIndex()
"""The index of an actor's first commit."""


def decode_index(n: int, text: str) -> CommitIndex:
    """Check the header of commit `n`.

    Raises:
        InvalidEnvelope: the list does not fit `n`, or sequences do not fall.
    """
    _decode_named(n, text)
    return CommitIndex(n, text)


def decode_short_index(n: int, text: str) -> list[int] | None:
    """Return the sequences of the commits before commit `n`, oldest first, where its header names each of them; None where it names blocks.

    Raises:
        InvalidEnvelope: as `decode_index`.
    """
    return _decode_named(n, text)[::-1] if n < RADIX else None


def inner_blocks(block: Block, index: CommitIndex) -> Iterator[Block]:
    """Yield what lies inside `block` before its last commit, newest first, from that commit's own `index`."""
    for inner in index.blocks():
        if inner.last < block.first:
            return
        yield inner


def _close_blocks(n: int, parts: list[str], sequence: int) -> str:
    """Return the text after commit `n`, whose low digits are full: it stands for all that they name."""
    newest, dropped = int(parts[0], 36), 0
    if sequence <= newest:
        raise InvalidEnvelope(_NOT_BEFORE)
    while n % RADIX == RADIX - 1:
        n //= RADIX
        dropped += RADIX - 1
    if dropped == len(parts):
        return _to_base36(sequence)
    kept = newest - sum(int(part, 36) for part in parts[1 : dropped + 1])
    return ".".join((_to_base36(sequence), _to_base36(sequence - kept), *parts[dropped + 1 :]))


def _list_blocks(n: int) -> Iterator[tuple[int, int]]:
    """Yield the first and the last ordinal of each block that covers a part of [0, n), newest first."""
    last = n - 1
    for level, digit in enumerate(_digits_of(n)):
        size = RADIX**level
        for _ in range(digit):
            yield last - size + 1, last
            last -= size


def _digits_of(n: int) -> list[int]:
    digits: list[int] = []
    while n:
        n, digit = divmod(n, RADIX)
        digits.append(digit)
    return digits


def _decode_named(n: int, text: str) -> list[int]:
    """Return what the header of commit `n` names, newest first, or raise as `decode_index`."""
    if n < 0:
        raise InvalidEnvelope(f"no commit has the ordinal {n}")
    found = _decode_sequences(text)
    if len(found) != sum(_digits_of(n)):
        raise InvalidEnvelope(f"the index of commit {n} names {len(found)} commits, which does not fit its ordinal")
    return found


def _decode_sequences(text: str) -> list[int]:
    if not text:
        return []
    parts = text.split(".")
    if not _INDEX.fullmatch(text):
        wrong = next(part for part in parts if not _NUMBER.fullmatch(part))
        raise InvalidEnvelope(f"the commit index holds {wrong!r}, which is not base 36")
    newest, *distances = [int(part, 36) for part in parts]
    sequences = [*accumulate(distances, sub, initial=newest)]
    if 0 in distances or sequences[-1] <= 0:
        raise InvalidEnvelope("the sequences of a commit index must fall and be positive")
    return sequences


def _to_base36(value: int) -> str:
    """Return a number of at least 1, two digits at a time: each commit writes two. Sequences are positive, and so is the distance to an earlier one."""
    if value <= 0:
        raise InvalidEnvelope(_NOT_BEFORE)
    if value < _PAIR:
        return _SHORT[value]
    text = ""
    while value >= _PAIR:
        value, pair = divmod(value, _PAIR)
        text = _PAIRS[pair] + text
    return _SHORT[value] + text
