"""Commands and replies on the wire, and the rules of their headers.

A command is a JSON object with a few headers, so `nats req` and any other client can send one. What a client leaves out is
filled in on arrival: no id means no idempotency, no time-out means the default. Durations travel, never absolute
deadlines, since clocks differ.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from datetime import MAXYEAR, MINYEAR, UTC, datetime
from functools import lru_cache
from math import inf
from operator import index
from typing import Any, Final, Literal, SupportsIndex, cast

import msgspec

from aether_api import headers
from aether_api.envelope import Event, decode_fields, encode_object
from aether_api.errors import MALFORMED, InvalidEnvelope, Reason, describe_value
from aether_api.identity import ActorId, CommandId, check_actor, check_member

TIMEOUT_DEFAULT_MS: Final = 10_000
"""Milliseconds a command may wait when its sender says nothing; longer than a fail-over, shorter than a person's patience."""

TIMEOUT_DEFAULT_S: Final = TIMEOUT_DEFAULT_MS / 1000
"""The same in seconds."""

TIMEOUT_MAX_MS: Final = 120_000
"""Milliseconds; a command is never run after it is older than this, or an id could leave the window of known commands."""

TIME_FORMAT: Final = "%Y-%m-%dT%H:%M:%S.%fZ"
"""RFC 3339 in UTC with microseconds: equal length, so text order is time order."""

TIME_LENGTH: Final = len("2026-01-31T12:00:00.000000Z")

TIME_MIN: Final = datetime(1000, 1, 2, tzinfo=UTC)
"""Before it a year has fewer than four digits, in some time zone."""

TIME_MAX: Final = datetime(9999, 12, 30, tzinfo=UTC)
"""After it some time zones have no date."""

SECOND_MAX: Final = 2**32 - 1
"""The last unix second that an event may have, in 2106: the window of known commands keeps 32 bits of it."""

COMMAND_ID_LENGTH_MAX: Final = 128
"""Characters: a UUID, a trace id or a client's own composed key fit."""

Outcome = Literal["accepted", "rejected", "noop", "error"]


class Command(msgspec.Struct, frozen=True):
    """A wish that one actor shall do something.

    Attributes:
        id: chosen by the sender; a repeat of an accepted id gets the first answer.
        payload: raw JSON object.
        time: when the sender made it, RFC 3339 UTC; `unix_s` is the same moment.
        timeout_s: seconds the sender waits, counted from arrival.
        expected_version: refuse unless the actor is at exactly this version.
        dry_run: decide and answer, store nothing.
        forwards: how often pods passed it on.
    """

    actor: ActorId
    name: str
    id: CommandId
    payload: bytes
    time: str
    unix_s: float
    timeout_s: float
    expected_version: int | None = None
    dry_run: bool = False
    forwards: int = 0
    traceparent: str = ""


class ReplyEvent(msgspec.Struct, frozen=True):
    """An event as a reply shows it."""

    type: str
    version: int
    time: str
    data: msgspec.Raw

    def fields(self) -> dict[str, Any]:
        """Decode the data, or raise `InvalidEnvelope`."""
        return decode_fields(self.data)


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The answer to a command.

    Attributes:
        outcome: accepted (events stored), noop (nothing to store), rejected (the model or a precondition said no), error.
        version: the actor's version after the command, -1 when unknown.
        events: what was stored, or what would be (dry run).
        reason: one of `Reason` or a guard's own; empty when accepted.
        retry_after_ms: a repeat with the same id may succeed after this time; 0 means that it will not.
        state: for a dry run, the state after what would be stored; else None.
    """

    outcome: Outcome
    version: int = -1
    events: tuple[ReplyEvent, ...] = ()
    reason: str = ""
    message: str = ""
    retry_after_ms: int = 0
    command_id: str = ""
    dry_run: bool = False
    state: dict[str, Any] | None = None


_decode_reply = msgspec.json.Decoder(Reply).decode
encode_reply = msgspec.json.Encoder().encode
"""Encode a `Reply` (or any struct) as JSON bytes."""


def build_reply_events(events: tuple[Event, ...] | list[Event]) -> tuple[ReplyEvent, ...]:
    """Return the events as a reply shows them."""
    return tuple(ReplyEvent(event.type, event.version, event.time, event.data) for event in events)


def make_encodable(text: str) -> str:
    """Return a text that JSON can carry: a lone surrogate, which some texts of a model's author hold, becomes a question mark."""
    return text.encode(errors="replace").decode()


def build_error(reason: Reason, message: str, *, command_id: str = "", version: int = -1, retry_after_ms: int = 0) -> Reply:
    """Return the reply for a command that met an error before or beside the model."""
    return Reply("error", version=version, reason=reason.value, message=message, retry_after_ms=retry_after_ms, command_id=command_id)


def decode_reply(payload: bytes) -> Reply:
    """Decode a reply, or raise `InvalidEnvelope`."""
    try:
        return _decode_reply(payload)
    except MALFORMED as exc:
        raise InvalidEnvelope(f"not a reply of an actor: {exc}") from exc


def build_command(
    actor: ActorId,
    name: str,
    payload: Mapping[str, object] | bytes,
    *,
    command_id: str,
    now_s: float,
    timeout_s: float = TIMEOUT_DEFAULT_S,
    expected_version: int | None = None,
    dry_run: bool = False,
) -> Command:
    """Return a command that is made at `now_s`, unix time.

    Raises:
        InvalidName: the command's name cannot be a subject's token, or `actor` is no `ActorId`.
        InvalidEnvelope: its fields are no JSON object, or another argument is nothing that a command can carry; the message names it.
    """
    _check_arguments(actor, command_id, timeout_s)
    return Command(
        actor=actor,
        name=check_member("command", name),
        id=CommandId(command_id),
        payload=payload if isinstance(payload, bytes) else encode_object(payload),
        time=format_time(now_s),
        unix_s=now_s,
        timeout_s=timeout_s,
        expected_version=None if expected_version is None else check_version("expected_version", expected_version),
        dry_run=dry_run,
    )


def _check_arguments(actor: object, command_id: object, timeout_s: object) -> None:
    """Refuse at once what Python lets through, and what would fail where nobody can tell the caller."""
    check_actor(actor)
    check_command_id(command_id)
    if not isinstance(timeout_s, int | float) or isinstance(timeout_s, bool) or not 0 < timeout_s < inf:
        raise InvalidEnvelope(f"timeout_s must be a number of seconds above 0, not {timeout_s!r:.80}")


def choose_command_id(command_id: str | None) -> str:
    """Return the id that a caller chose, or a fresh one for None; what is no id is refused with the command, an empty one, too: it is a variable that was not set."""
    return secrets.token_hex(16) if command_id is None else command_id


def check_version(argument: str, version: object) -> int:
    """Return an actor's version, of whatever type of whole numbers, or raise `InvalidEnvelope`."""
    try:
        number = -1 if isinstance(version, bool) else index(cast("SupportsIndex", version))
    except TypeError:
        number = -1
    if number < 0:
        raise InvalidEnvelope(f"{argument} must be a whole number of at least 0, not {describe_value(version)}")
    return number


def check_command_id(command_id: object) -> None:
    """Raise `InvalidEnvelope` for what cannot be the id of a command."""
    if not isinstance(command_id, str):
        raise InvalidEnvelope(f"command_id must be a text, not {describe_value(command_id)}; write command_id={str(command_id)!r}")
    if not command_id or len(command_id) > COMMAND_ID_LENGTH_MAX or not command_id.isprintable():
        raise InvalidEnvelope(f"command_id must be 1 to {COMMAND_ID_LENGTH_MAX} printable characters, not {command_id!r:.200}")


def build_command_headers(command: Command) -> bytes:
    """Return the header lines that carry a command."""
    lines = {headers.COMMAND: str(command.id), headers.TIME: command.time, headers.TIMEOUT_MS: str(max(1, round(command.timeout_s * 1000)))}
    if command.expected_version is not None:
        lines[headers.EXPECTED_VERSION] = str(command.expected_version)
    if command.dry_run:
        lines[headers.DRY_RUN] = "true"
    if command.forwards:
        lines[headers.FORWARDS] = str(command.forwards)
    if command.traceparent:
        lines[headers.TRACEPARENT] = command.traceparent
    return headers.encode_headers(lines)


def parse_command(actor: ActorId, name: str, raw_headers: bytes, payload: bytes, *, now_s: float, fresh_id: Callable[[], str]) -> Command:
    """Build a command from a message.

    Args:
        now_s: the receiver's unix time, for a command that carries none.
        fresh_id: makes an id for a command that carries none.

    Raises:
        InvalidEnvelope: a header is malformed; the message names it.
    """
    usual = _USUAL.fullmatch(raw_headers)
    if usual is not None:
        command_id, time, second, micros, timeout_ms = usual.groups()
        unix_second = _find_second(second)
        if unix_second:
            unix_s = (unix_second * 1_000_000 + int(micros)) / 1_000_000
            return Command(actor, name, CommandId(command_id.decode()), payload or b"{}", time.decode(), unix_s, min(int(timeout_ms), TIMEOUT_MAX_MS) / 1000)
    return _parse_any_command(actor, name, raw_headers, payload, now_s=now_s, fresh_id=fresh_id)


_USUAL = re.compile(
    rf"NATS/1\.0\r\n{headers.COMMAND}: ([!-~]{{1,{COMMAND_ID_LENGTH_MAX}}})\r\n{headers.TIME}: ((\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d)\.(\d{{6}})Z)\r\n"
    rf"{headers.TIMEOUT_MS}: ([1-9]\d{{0,8}})\r\n\r\n".encode()
)
"""The headers of nearly every command, as `build_command_headers` writes them: one search instead of one for each header (measured: 2 us instead of 9)."""


def _parse_any_command(actor: ActorId, name: str, raw_headers: bytes, payload: bytes, *, now_s: float, fresh_id: Callable[[], str]) -> Command:
    command_id = headers.find_header(raw_headers, _COMMAND)
    sent = headers.find_header(raw_headers, _TIME)
    timeout = headers.find_header(raw_headers, _TIMEOUT_MS)
    time, unix_s = (format_time(now_s), now_s) if sent is None else _parse_sent(sent)
    timeout_ms = TIMEOUT_DEFAULT_MS if timeout is None else _parse_int(headers.TIMEOUT_MS, timeout, minimum=1)
    usual = (command_id is not None) + (sent is not None) + (timeout is not None)
    is_all = raw_headers.count(b"\n") == usual + _FRAME_LINES and raw_headers[-4:] == b"\r\n\r\n"
    rest = _NO_REST if is_all else _parse_rest(raw_headers)
    return Command(
        actor=actor,
        name=name,
        id=CommandId(fresh_id() if command_id is None else _check_command_id(command_id)),
        payload=payload or b"{}",
        time=time,
        unix_s=unix_s,
        timeout_s=min(timeout_ms, TIMEOUT_MAX_MS) / 1000,
        expected_version=rest.expected_version,
        dry_run=rest.dry_run,
        forwards=rest.forwards,
        traceparent=rest.traceparent,
    )


def format_time(unix_s: float) -> str:
    """Return RFC 3339 in UTC with microseconds: equal length, so text order is time order."""
    second, micros = divmod(round(unix_s * 1_000_000), 1_000_000)
    return f"{_format_second(second)}.{micros:06d}Z"


@lru_cache(maxsize=8)
def _format_second(second: int) -> str:
    """Return the part of a time that stays for a second; most of what it costs to format one (measured: 2.2 us of 2.6)."""
    return datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S")


def normalise_time(text: str) -> str:
    """Return an event's time in the form of `format_time`, in which alone text order is time order, or raise `InvalidEnvelope`."""
    return text if _is_canonical(text) else parse_time(text).astimezone(UTC).strftime(TIME_FORMAT)


def parse_second(text: str) -> int:
    """Return the unix second of an event's time, or raise `InvalidEnvelope`; quick for the form of `format_time`, of which replay sees many in a row."""
    if len(text) == TIME_LENGTH and text[19] == "." and text[26] == "Z" and text[20:26].isdigit() and text.isascii():
        return _parse_second(text[:19])
    return _check_second(text)


def parse_seconds(texts: Sequence[str]) -> list[int]:
    """Return what `parse_second` returns of each, for times that look like those of `format_time`; less for each, since that is checked in columns.

    Raises:
        InvalidEnvelope: one looks otherwise, or is no time.
    """
    joined = "".join(texts)
    columns = [joined[place::TIME_LENGTH] for place in (19, 26, *range(20, 26))]
    count = len(texts)
    if {*map(len, texts)} != {TIME_LENGTH} or columns[:2] != ["." * count, "Z" * count] or not ("".join(columns[2:]).isdigit() and joined.isascii()):
        raise InvalidEnvelope(f"times are not all in the form {TIME_FORMAT}")
    seconds = [text[:19] for text in texts]
    found = {second: _parse_second(second) for second in dict.fromkeys(seconds)}
    return [*map(found.__getitem__, seconds)]


@lru_cache(maxsize=8)
def _parse_second(text: str) -> int:
    return _check_second(text + "Z")


def _check_second(text: str) -> int:
    second = int(parse_time(text).timestamp())
    if not 0 <= second <= SECOND_MAX:
        raise InvalidEnvelope(f"{text!r} is not a time of this age: it must lie between 1970 and 2106")
    return second


@lru_cache(maxsize=8)
def _find_second(text: bytes) -> int:
    """Return the unix second of a time without offset and fraction, 0 for what is none or not of this age."""
    try:
        moment = datetime.fromisoformat(text.decode()).replace(tzinfo=UTC)
    except ValueError:
        return 0
    return int(moment.timestamp()) if TIME_MIN < moment < TIME_MAX else 0


def parse_time(text: str) -> datetime:
    """Parse RFC 3339 with an offset, or raise `InvalidEnvelope`."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as exc:
        raise InvalidEnvelope(f"{text!r} is not an RFC 3339 time such as 2026-01-31T12:00:00Z") from exc
    if moment.tzinfo is None:
        raise InvalidEnvelope(f"{text!r} has no time zone; end it with Z or an offset")
    if not MINYEAR < moment.year < MAXYEAR and not _is_in_utc(moment):
        raise InvalidEnvelope(f"{text!r} lies outside of the years {MINYEAR} to {MAXYEAR} in UTC")
    return moment


def _is_in_utc(moment: datetime) -> bool:
    try:
        moment.astimezone(UTC)
    except OverflowError:
        return False
    return True


class _Rest(msgspec.Struct, frozen=True):
    """What few commands carry."""

    expected_version: int | None = None
    dry_run: bool = False
    forwards: int = 0
    traceparent: str = ""


_NO_REST: Final = _Rest()

_FRAME_LINES: Final = 2
"""Lines of a header block that are no headers: the first names the protocol, the last is empty."""

_COMMAND: Final = headers.marker(headers.COMMAND)
_TIME: Final = headers.marker(headers.TIME)
_TIMEOUT_MS: Final = headers.marker(headers.TIMEOUT_MS)


def _parse_rest(raw_headers: bytes) -> _Rest:
    found = headers.decode_headers(raw_headers)
    expected, forwards, trace = found.get(headers.EXPECTED_VERSION), found.get(headers.FORWARDS), found.get(headers.TRACEPARENT, "")
    return _Rest(
        expected_version=None if expected is None else _parse_int(headers.EXPECTED_VERSION, expected, minimum=0),
        dry_run=_parse_bool(found, headers.DRY_RUN),
        forwards=0 if forwards is None else _parse_int(headers.FORWARDS, forwards, minimum=0),
        traceparent=trace if trace.isprintable() else "",
    )


def _parse_sent(text: str) -> tuple[str, float]:
    """Return a time in the form of `format_time`, whatever its offset and precision, and as unix time."""
    try:
        moment = parse_time(text)
        if not TIME_MIN < moment < TIME_MAX:
            raise InvalidEnvelope(f"{text!r} is not a time of this age")
    except InvalidEnvelope as exc:
        raise InvalidEnvelope(f"header {headers.TIME}: {exc}") from exc
    return normalise_time(text), moment.timestamp()


def _is_canonical(text: str) -> bool:
    """Tell whether a text that is a time has the form of `TIME_FORMAT`; ISO 8601 allows weeks, commas and other separators, too."""
    return len(text) == TIME_LENGTH and (text[7], text[10], text[13], text[19], text[-1]) == ("-", "T", ":", ".", "Z")


def _check_command_id(value: str) -> str:
    if not value or len(value) > COMMAND_ID_LENGTH_MAX or not value.isprintable():
        raise InvalidEnvelope(f"header {headers.COMMAND} must be 1 to {COMMAND_ID_LENGTH_MAX} printable characters")
    return value


def _parse_int(name: str, text: str, *, minimum: int) -> int:
    count = headers.parse_count(text)
    if count is None or count < minimum:
        raise InvalidEnvelope(f"header {name} must be a whole number of at least {minimum}, not {text[:40]!r}")
    return count


def _parse_bool(found: dict[str, str], name: str) -> bool:
    text = found.get(name, "false").lower()
    if text not in ("true", "false", "1", "0"):
        raise InvalidEnvelope(f"header {name} must be true or false, not {text!r}")
    return text in ("true", "1")
