"""The inboxes of a namespace: durable commands that wait until their actors have settled them, and those that were given up.

There are no consumers: an actor's VM reads its own subject in order, from its position in the log on, and purges what it has
settled. So a million inboxes cost the server nothing but their messages.

The position of an actor is a sequence of the stream, which begins anew if somebody deletes the stream. Therefore a position
also names the stream's incarnation, the moment at which it was made. A stream that has gone back (restored from a backup, or its
last messages lost with a server) uses sequences again, too: whoever sees that gives it another incarnation, in its metadata.

Every call may fail as `aether_nats.jetstream` says; all of them may be repeated.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Final

import msgspec

from aether_api.durable import DeadLetter, InboxPosition, build_dead_forms, build_durable_headers, build_retry_headers, read_dead_letter
from aether_api.errors import MALFORMED, AetherError, InvalidEnvelope, InvalidName, JetStreamError, PayloadTooLarge, PermanentError, StreamUnavailable
from aether_api.headers import parse_count
from aether_api.identity import ActorId
from aether_api.messages import Command, parse_time
from aether_api.subjects import dead_subject, inbox_stream, inbox_subject, inbox_wildcard, parse_inbox_subject, reminder_wildcard, snapshot_stream, tries_subject
from aether_nats.jetstream import BATCH_BYTES_MAX, JetStream
from aether_nats.jetstream_wire import ERRORS_TOO_LARGE, PubAck, StoredMessage, StreamInfo

READ_AHEAD: Final = 100
"""Messages read at once, and settled with one purge: hides the round trip, and what a crash makes us look at again is little."""

INCARNATION_KEY: Final = "aether.inbox.incarnation"
"""Key in the metadata of a stream that has gone back: when that was seen, in unix milliseconds."""

NO_SEQUENCE: Final = 2**62
"""A sequence that no stream reaches: who may ask to delete it may delete others, which the server tells in no other way."""


class Tries(msgspec.Struct, frozen=True):
    """How often the first waiting command of an actor was begun without being settled.

    Attributes:
        incarnation: of the stream; `sequence` is the command's.
    """

    incarnation: int
    sequence: int
    count: int


_encode = msgspec.json.Encoder().encode
_decode_tries = msgspec.json.Decoder(Tries).decode


class Inbox:
    """Durable commands of one namespace."""

    def __init__(self, js: JetStream, namespace: str) -> None:
        self._js = js
        self._namespace = namespace
        self._stream = inbox_stream(namespace)

    async def send(self, command: Command, *, timeout_s: float | None = None) -> PubAck:
        """Store a command: from the ack on it will be run. A repeat of the id within two minutes is dropped.

        Raises:
            InvalidEnvelope: it cannot be durable.
        """
        return await self._js.publish(inbox_subject(command.actor), command.payload, build_durable_headers(command), timeout_s=timeout_s)

    async def read_end(self) -> InboxPosition:
        """Return which stream this is, and the last sequence in it.

        Raises:
            StreamUnavailable: there is no such stream now.
        """
        return _end_of(await self.read_info())

    async def begin_anew(self, end: InboxPosition, now_s: float) -> InboxPosition:
        """Give the stream whose end was seen there another incarnation, unless somebody did, and return its end.

        Args:
            now_s: unix time; later than the stream was made.
        """
        now = await self.read_end()
        if now.incarnation != end.incarnation:
            return now
        return _end_of(await self._js.set_metadata(self._stream, INCARNATION_KEY, str(max(int(now_s * 1000), end.incarnation + 1))))

    async def read_backlog(self) -> dict[ActorId, int]:
        """Return how many messages wait for which actor; of 100,000 actors at most."""
        info = await self.read_info(inbox_wildcard(self._namespace))
        backlog: dict[ActorId, int] = {}
        for subject, count in info.state.subjects.items():
            with suppress(InvalidName):  # somebody published what never was an actor's
                backlog[parse_inbox_subject(subject)] = count
        return backlog

    async def find_last(self, actors: Sequence[ActorId]) -> dict[ActorId, int]:
        """Return the last sequence of the inboxes that hold something; perhaps not the newest, the hint tells that."""
        found = self._js.multi_last(self._stream, [inbox_subject(actor) for actor in actors])
        return {parse_inbox_subject(message.subject): message.sequence async for message in found}

    async def read_next(self, actor: ActorId, after: int, *, max_bytes: int = BATCH_BYTES_MAX) -> list[StoredMessage]:
        """Return the next messages after a sequence, in order; empty when there are none, which the leader confirmed.

        Args:
            max_bytes: after so many no further message comes.
        """
        subject = inbox_subject(actor)
        messages, _ = await self._js.read_batch(self._stream, subject, after + 1, READ_AHEAD, max_bytes=max_bytes)
        if messages:
            return messages
        first = await self._js.leader_next(self._stream, subject, after + 1)
        return [] if first is None else [first]

    async def settle(self, actor: ActorId, through: int) -> None:
        """Remove the messages of an actor up to a sequence."""
        await self._js.purge(self._stream, inbox_subject(actor), before_sequence=through + 1)

    async def read_tries(self, actor: ActorId) -> Tries | None:
        """Read how often the actor's first waiting command was begun."""
        message = await self._js.message_by_last(snapshot_stream(actor.namespace), tries_subject(actor))
        if message is None:
            return None
        try:
            return _decode_tries(message.payload)
        except MALFORMED:
            return None  # unreadable is as good as never tried: the count begins anew

    async def write_tries(self, actor: ActorId, tries: Tries) -> None:
        """Note that a command is begun once more; comes before it is begun."""
        await self._js.publish(tries_subject(actor), _encode(tries))

    async def bury(self, actor: ActorId, message: StoredMessage, reason: str, explanation: str) -> None:
        """Keep a command as a dead letter, as much of it as fits into a message; it still has to be settled.

        Raises:
            PermanentError: the server does not take it, however short.
        """
        refusal: PermanentError | None = None
        for lines, payload in build_dead_forms(message.raw_headers, message.payload, message.sequence, reason, explanation):
            try:
                await self._js.publish(dead_subject(actor), payload, lines)
                return
            except (PayloadTooLarge, JetStreamError) as exc:
                if isinstance(exc, JetStreamError) and exc.error_code not in ERRORS_TOO_LARGE:
                    raise
                refusal = exc
        if refusal is not None:
            raise refusal

    async def read_dead(self, actor: ActorId) -> list[DeadLetter]:
        """List the dead letters of an actor, oldest first."""
        return [letter async for letter in self.read_each_dead(actor)]

    async def read_each_dead(self, actor: ActorId) -> AsyncGenerator[DeadLetter]:
        """Yield them, for whoever does not keep what may be hundreds of large payloads."""
        async for message in self._js.read_all(self._stream, dead_subject(actor)):
            yield read_dead_letter(message.sequence, message.raw_headers, message.payload, stored=message.time)

    async def retry_dead(self, actor: ActorId, sequence: int) -> int:
        """Put a dead letter into the inbox again, behind what waits there, and return its new sequence.

        Raises:
            InvalidEnvelope: the actor has no such dead letter, or its payload is lost.
            PermissionDenied: the user may not remove it; nothing was put into the inbox, where it would run while the letter stays.
            PermanentError: it waits again, and could not be removed; says what to do.
        """
        letter = await self._read_letter(actor, sequence)
        with suppress(JetStreamError):  # the server has looked for it, so the user may delete
            await self._js.delete_message(self._stream, NO_SEQUENCE)
        ack = await self._js.publish(inbox_subject(actor), letter.payload, build_retry_headers(letter.raw_headers, sequence))
        try:
            await self._js.delete_message(self._stream, sequence)
        except AetherError as exc:
            way = f"remove it with `aether dead drop {actor.model}/{actor.id} {sequence}`, and do not retry it"
            raise PermanentError(f"the command waits again as {ack.sequence}, but dead letter {sequence} may still be there: {way} ({exc})") from exc
        return ack.sequence

    async def drop_dead(self, actor: ActorId, sequence: int) -> None:
        """Remove a dead letter for good.

        Raises:
            InvalidEnvelope: the actor has no such dead letter.
        """
        await self._read_letter(actor, sequence)
        await self._js.delete_message(self._stream, sequence)

    async def _read_letter(self, actor: ActorId, sequence: int) -> StoredMessage:
        message = await self._js.leader_message(self._stream, sequence)
        if message is None or message.subject != dead_subject(actor):
            raise InvalidEnvelope(f"{actor} has no dead letter {sequence}; `aether dead list` shows what there is")
        return message

    async def read_info(self, subjects_filter: str = "") -> StreamInfo:
        """Return what the server knows of the stream, with its subjects that match a filter.

        Raises:
            StreamUnavailable: there is no such stream now.
        """
        info = await self._js.stream_info(self._stream, subjects_filter=subjects_filter)
        if info is None:
            raise StreamUnavailable(f"there is no stream {self._stream}; a runtime or the operator makes it when it starts")
        return info


async def read_inbox_end(js: JetStream, namespace: str) -> InboxPosition | None:
    """Return the position after which the inboxes of a namespace hold nothing yet; None without a stream."""
    info = await js.stream_info(inbox_stream(namespace))
    return None if info is None else _end_of(info)


async def purge_inbox(js: JetStream, actor: ActorId, end: InboxPosition) -> None:
    """Remove what waited for an actor when its inbox ended there: commands, reminders, dead letters; what came later is the next life's."""
    now = await read_inbox_end(js, actor.namespace)
    if now is None or now.incarnation != end.incarnation or not end.sequence:
        return
    for subject in (reminder_wildcard(actor), inbox_subject(actor), dead_subject(actor)):
        await js.purge(inbox_stream(actor.namespace), subject, before_sequence=end.sequence + 1)


def incarnation_of(info: StreamInfo) -> int:
    """Return which stream this is: when it was made, or was seen to have gone back, in unix milliseconds."""
    return max(int(parse_time(info.created).timestamp() * 1000), parse_count(info.config.metadata.get(INCARNATION_KEY, "")) or 0)


def _end_of(info: StreamInfo) -> InboxPosition:
    return InboxPosition(incarnation_of(info), info.state.last_seq)
