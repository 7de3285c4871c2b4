"""The window of accepted commands: which ids took effect lately, and in which commit.

A command id takes effect at most once while it is in the window. A hit is only a hint: it is checked against the commits
that the entries name before it is believed. The window is rebuilt by replay and travels in snapshots, so it survives restarts and moves.

A busy actor accepts millions of commands in the time that its window spans, so an entry is 20 bytes in a `bytearray` and no
Python object: a hash of the id, the commit's sequence, its second. Records lie in shards of some 16, oldest first, which C
searches in a tenth of a microsecond; their number follows the count by linear hashing (Litwin 1980), one small split or merge at a
time, so no command ever pays for a growing table. Old records are dropped from the front of a shard when the upkeep passes by.

Where even that would be too much, the oldest go early and `floor_s` says since when nothing is missing: an id from before it
might have taken effect unbeknown, so such a command is never run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Final

import msgspec

WINDOW_S: Final = 150.0
"""Seconds that an accepted command stays known: a command older than 120 s is refused, and clocks may differ by 30 s."""

AGE_MAX_S: Final = 120.0
"""Seconds after which a command is never run: its id may have left the window of another pod."""

SKEW_S: Final = 30.0
"""Seconds by which the clocks of a sender and a pod may differ: a command from later could outlive its id in the window, and one
from before the window's floor may have taken effect after it."""

KEPT_MIN: Final = 64
"""Entries kept whatever their age, so that a person who repeats a command after lunch still gets the first answer."""

ENTRIES_MAX: Final = 4_194_304
"""Entries of one actor, 100 MB: over a minute at the highest rate that one actor reaches, and commands need half a minute and some."""

PACKED_MAX: Final = 131_072
"""Entries that travel in a snapshot, 2.6 MB: those of an actor that accepts 800 commands a second."""

LEFT_OUT_S: Final = 2**32
"""The floor of a window that holds nothing of what it should."""

PER_SHARD: Final = 16
"""Entries of a shard on average: fewer cost memory (a bytearray is 56 bytes), more cost time to search."""

_RECORD: Final = struct.Struct(">QQI")
"""Hash, sequence, unix second."""

_SIZE: Final = _RECORD.size
_TIME_AT: Final = 16

_PLACE_BIT: Final = 40
"""The bits of a hash from here on choose the shard: multiplying mixes the high ones best, and 2^24 shards are never reached."""

_MIX: Final = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio: spreads hashes that differ in few bits (Knuth's multiplicative hashing)."""

_MASK: Final = 2**64 - 1

_PRIME: Final = 712544676207699859
"""The largest prime below 2^60 over the golden ratio. No power of 256 is near a small number modulo it, as 256^8 = 8 is modulo 2^61 - 1, with which a
fifth of ids such as `order-17-item-042` shared their hash; and Python divides by two of its digits of 30 bits faster than by three."""


def hash_command_id(command_id: str) -> int:
    """Return the 64-bit hash that the window keeps of an id; it is stored, so it is the same on every machine.

    It is the id's bytes as a number modulo a prime: 0.15 us for a short id, 0.2 for a UUID (BLAKE2s, the fastest digest of `hashlib`, 0.36), and
    of two million ids with counters in them no two alike. A collision that somebody makes on purpose costs one read of a commit.
    """
    return int.from_bytes(command_id.encode(), "big") % _PRIME * _MIX & _MASK


class PackedWindow(msgspec.Struct, frozen=True):
    """A window as it travels in a snapshot.

    Attributes:
        shards: the records of each shard.
        floor_s: unix second since which nothing is missing, 0 if nothing ever was left out.
    """

    shards: list[bytes] = []
    floor_s: int = 0


LEFT_OUT: Final = PackedWindow([], LEFT_OUT_S)


class CommandWindow:
    """Ids of accepted commands.

    Attributes:
        floor_s: unix second since which nothing is missing; 0 unless memory has forced entries out early.
    """

    __slots__ = ("_block_s", "_count", "_kept_s", "_mask", "_next", "_shards", "_steps", "_upkeep_at", "floor_s")

    def __init__(self, packed: PackedWindow | None = None) -> None:
        """Begin empty, or as `packed` was."""
        self._shards: list[bytearray] = [bytearray(shard) for shard in packed.shards] if packed and packed.shards else [bytearray()]
        self._mask = (1 << len(self._shards).bit_length()) - 1
        self._count = sum(map(len, self._shards)) // _SIZE
        self._upkeep_at = self._count + PER_SHARD
        self._next = self._steps = 0
        self._block_s = self._kept_s = 0
        self.floor_s = packed.floor_s if packed else 0

    def __len__(self) -> int:
        return self._count

    def find(self, command_id: str) -> int | None:
        """Return the sequence of the newest commit that may hold the command."""
        return next(iter(self.find_digest(hash_command_id(command_id))), None)

    def find_digest(self, digest: int) -> Sequence[int]:
        """Return the sequences of all commits that may hold the command of this `hash_command_id`, newest first: two ids may share it."""
        shards = self._shards
        place = digest >> _PLACE_BIT & self._mask
        shard = shards[place] if place < len(shards) else shards[place & self._mask >> 1]
        key = digest.to_bytes(8, "big")
        at = shard.rfind(key)
        return _read_sequences(shard, key, at) if at >= 0 else ()

    def add(self, command_id: str, sequence: int, time_s: float) -> None:
        """Note an accepted command and forget some that are too old; `time_s` is the event's unix time and never runs back."""
        self.add_each(((hash_command_id(command_id), sequence, int(time_s)),))

    def add_digests(self, digests: Iterable[int], sequence: int, second: int) -> None:
        """Do the same for the `hash_command_id` of all commands of one commit."""
        self.add_each(zip(digests, repeat(sequence), repeat(second)))

    def add_each(self, entries: Iterable[tuple[int, int, int]]) -> None:
        """Do the same for `(hash, sequence, unix second)` entries, oldest first."""
        shards, pack = self._shards, _RECORD.pack
        for digest, sequence, second in entries:
            place = digest >> _PLACE_BIT & self._mask
            shard = shards[place] if place < len(shards) else shards[place & self._mask >> 1]
            shard += pack(digest, sequence, second)
            self._count += 1
            if self._count >= self._upkeep_at:
                self._keep_up(second)

    def pack(self) -> PackedWindow:
        """Return the window as it travels; a big one stays behind and is read from the log again."""
        if self._count > PACKED_MAX:
            return LEFT_OUT
        return PackedWindow([bytes(shard) for shard in self._shards], self.floor_s)

    def entries(self) -> list[tuple[int, int, int]]:
        """Return the `(hash, sequence, unix second)` entries, oldest first."""
        return sorted((entry for shard in self._shards for entry in _RECORD.iter_unpack(shard)), key=itemgetter(1, 0))

    def _keep_up(self, now_s: int) -> None:
        """Do a share of the upkeep, once for every `PER_SHARD` entries: half as many shards, or all, lose what is old, and one is split or two are merged."""
        self._steps += 1
        if not self._steps % (KEPT_MIN // PER_SHARD):
            self._kept_s, self._block_s = self._block_s, now_s
        horizon_s = max(min(now_s - int(WINDOW_S), self._kept_s), self.floor_s)
        for _ in range(min(PER_SHARD // 2, len(self._shards))):
            self._next += 1
            if self._next >= len(self._shards):
                self._next = 0
                self._raise_floor(now_s)
            self._drop_before(self._shards[self._next], horizon_s)
        if self._count > PER_SHARD * len(self._shards):
            self._split()
        elif self._count < PER_SHARD // 4 * (len(self._shards) - 1):
            self._merge()
        self._upkeep_at = self._count + PER_SHARD

    def _raise_floor(self, now_s: int) -> None:
        """Where there are too many entries, let the oldest eighth of the time that they span go in the round of upkeep that begins."""
        first = self._shards[0]
        if self._count > ENTRIES_MAX and first:
            oldest_s = max(self.floor_s, _second(first, 0))
            self.floor_s = oldest_s + max(1, (now_s - oldest_s) // 8)

    def _drop_before(self, shard: bytearray, horizon_s: int) -> None:
        cut = 0
        while cut < len(shard) and _second(shard, cut) < horizon_s:
            cut += _SIZE
        del shard[:cut]
        self._count -= cut // _SIZE

    def _split(self) -> None:
        """Move what belongs there out of the next shard to be split into a new one."""
        half = (self._mask + 1) // 2
        bit = half.bit_length() - 1 + _PLACE_BIT
        byte, wanted = 7 - bit // 8, 1 << bit % 8
        source = self._shards[len(self._shards) - half]
        self._shards.append(bytearray())
        if len(self._shards) > self._mask:
            self._mask = self._mask << 1 | 1
        packed = bytes(source)
        records = [packed[at : at + _SIZE] for at in range(0, len(packed), _SIZE)]
        source[:] = b"".join([record for record in records if not record[byte] & wanted])
        self._shards[-1] += b"".join([record for record in records if record[byte] & wanted])

    def _merge(self) -> None:
        """Take the last split back."""
        records = [*_RECORD.iter_unpack(self._shards.pop())]
        if len(self._shards) <= self._mask >> 1:
            self._mask >>= 1
        target = self._shards[len(self._shards) - (self._mask + 1) // 2]
        records += _RECORD.iter_unpack(target)
        target[:] = b"".join(_RECORD.pack(*record) for record in sorted(records, key=itemgetter(1)))


def _read_sequences(shard: bytearray, key: bytes, at: int) -> Sequence[int]:
    """Return the sequences of the records of a hash, from the last place on where its bytes stand."""
    found: dict[int, None] = {}
    while at >= 0:
        if not at % _SIZE:
            found[int.from_bytes(shard[at + 8 : at + 16], "big")] = None
        at = shard.rfind(key, 0, at + 7)
    return tuple(found)


def _second(shard: bytearray, at: int) -> int:
    return int.from_bytes(shard[at + _TIME_AT : at + _SIZE], "big")
