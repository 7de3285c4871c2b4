"""Every error of Aether, in one tree.

The first split is what a caller may do: try again later, or change something first.

    AetherError
    |-- RetryableError                 try again after `retry_after_s`
    |   |-- Busy                       a mailbox or a permit queue is full
    |   |-- Disconnected               the link is down; the outcome of a request under way is unknown
    |   |-- NoResponders               nobody serves the subject
    |   |-- RequestTimeout             no answer within the deadline; the outcome is unknown
    |   |-- Backpressure               too many bytes wait to be sent
    |   |-- StreamUnavailable          JetStream has no leader or answers 503
    |   |   `-- StreamFull             JetStream has no room for a message; nothing was stored
    |   |-- KubeUnavailable            the API server is away, overloaded (429) or answers 5xx
    |   |-- KubeConflict               the object changed under our feet (409)
    |   |-- KubeExpired                the API server forgot that resourceVersion (410): list again
    |   |-- LeadershipLost             this process leads no longer; the work is another's
    |   |-- WrongLastSequence          JetStream refused an expected sequence; nothing was stored
    |   |-- OutcomeUnknown             a command's answer was lost until its deadline; repeat it with its id
    |   `-- VersionConflictError       another commit came first
    |-- PermanentError                 the same call fails again
    |   |-- InvalidName                an id, name or subject that could never be addressed
    |   |-- InvalidEnvelope            bytes that are no command, commit or reply of ours
    |   |-- ModelInvalid               a model that does not compile
    |   |-- CommandFailed              a handler raised; nothing was stored
    |   |-- EventInvalid               a stored event that its model cannot apply
    |   |-- CommitTooLarge             more bytes than one message may hold
    |   |-- PayloadTooLarge            a message longer than the server takes
    |   |-- PermissionDenied           NATS does not let this user publish, or subscribe, to a subject
    |   |-- JetStreamError             any other refusal of the server, with its code
    |   |-- KubeNotFound, KubeForbidden, KubeInvalid      404, 401 and 403, 400 and 422
    |   |-- KubeAlreadyExists          a create met an object of that name (409)
    |   `-- SettingsInvalid            a setting that cannot work
    `-- InternalError                  a broken invariant: a bug in us; the part that met it stops

Wire reasons (`Reason`) are what a caller of an actor sees; `reason_of` maps the tree to them in one place.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, Literal

import msgspec

RETRY_SOON_S = 0.1
"""Seconds: long enough for a leader election tick or a hand-over step, short enough for a waiting person."""

RETRY_WHEN_FULL_S = 1.0
"""Seconds until a store that is full is tried again: somebody has to make room, and every caller comes back meanwhile."""


MALFORMED: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not what they should be: no JSON, no such type, no UTF-8, or nested deeper than the stack goes. Whoever
decodes what strangers write catches all of them."""


def describe_value(value: object) -> str:
    """Return a wrong argument as messages show it: shortened, with its type."""
    return f"{value!r:.80} ({type(value).__name__})"


VERSION_UNKNOWN: Final = -1
"""The version of an actor that nobody has looked up."""


class Reason(StrEnum):
    """Why an actor did not accept a command; a guard of a model may give its own reason beside these."""

    BUSY = "Busy"
    EXPIRED = "Expired"
    UNKNOWN = "Unknown"
    CONFLICT = "Conflict"
    FENCED = "Fenced"
    QUARANTINED = "Quarantined"
    SUSPENDED = "Suspended"
    COMMIT_TOO_LARGE = "CommitTooLarge"
    INVALID_COMMAND = "InvalidCommand"
    UNKNOWN_COMMAND = "UnknownCommand"
    UNKNOWN_ACTOR = "UnknownActor"
    UNKNOWN_MODEL = "UnknownModel"
    COMMAND_FAILED = "CommandFailed"
    WRONG_VERSION = "WrongVersion"
    INTERNAL = "Internal"


class AetherError(Exception):
    """The root of all errors that Aether raises on purpose."""

    reason: Reason = Reason.INTERNAL


class RetryableError(AetherError):
    """The same call may succeed later.

    Attributes:
        retry_after_s: seconds to wait before the next try.
    """

    reason = Reason.BUSY

    def __init__(self, message: str, *, retry_after_s: float = RETRY_SOON_S) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class PermanentError(AetherError):
    """The same call fails again until somebody changes something."""


class InternalError(AetherError):
    """A broken invariant of ours. Whoever meets it stops and reports; nobody guesses on."""


class Busy(RetryableError):
    """A bounded queue is full."""


class Disconnected(RetryableError):
    """The link to NATS is down; a request under way may or may not have been carried out."""

    reason = Reason.UNKNOWN


class NoResponders(RetryableError):
    """Nobody subscribes to the subject that was asked."""


class RequestTimeout(RetryableError):
    """No answer came in time; the request may or may not have been carried out."""

    reason = Reason.UNKNOWN


class Backpressure(RetryableError):
    """More bytes wait for the socket than the connection may hold."""


class StreamUnavailable(RetryableError):
    """JetStream cannot serve the stream now (no leader, 503, storage starting up)."""

    reason = Reason.UNKNOWN


class StreamFull(StreamUnavailable):
    """JetStream has no room for a message: its storage, the account's or the stream's own limit is used up. Nothing was stored; what is stored can be read."""

    reason = Reason.BUSY

    def __init__(self, why: str) -> None:
        super().__init__(f"NATS has no room for it: {why}; give JetStream more storage, or remove what is not needed", retry_after_s=RETRY_WHEN_FULL_S)


class KubeUnavailable(RetryableError):
    """The API server is away, overloaded, or answered 5xx."""


class KubeConflict(RetryableError):
    """The API server refused a write because the object changed (409)."""

    reason = Reason.CONFLICT


class KubeExpired(RetryableError):
    """The API server no longer knows the resourceVersion of a watch or of a page (410): list again from the start."""


class LeadershipLost(RetryableError):
    """This process leads no longer, or cannot know that it does: whoever leads now does the work."""


class WrongLastSequence(RetryableError):
    """JetStream refused an append because the subject's last sequence is another one; nothing was stored.

    Attributes:
        last: the subject's last sequence, or None where the server does not tell (a write under way on a replicated stream).
    """

    reason = Reason.CONFLICT

    def __init__(self, last: int | None) -> None:
        known = "another write is under way" if last is None else f"the last sequence is {last}"
        super().__init__(f"the append was refused: {known}; read the subject from the leader and decide again")
        self.last = last


class OutcomeUnknown(RetryableError):
    """No answer to a command came before its deadline, and it may have been carried out.

    Attributes:
        command_id: the id to repeat the command with; a repeat takes effect at most once.
    """

    reason = Reason.UNKNOWN

    def __init__(self, command_id: str, last_cause: str) -> None:
        super().__init__(f"the outcome of command {command_id} is unknown ({last_cause}); send it again with the same id")
        self.command_id = command_id


class VersionConflictError(RetryableError):
    """Another commit came first: the append was refused and nothing was stored.

    Attributes:
        actor: the actor's full name, `namespace/model/id`.
        attempted: the version that the caller wanted to follow.
        current: the actor's version in the log; `VERSION_UNKNOWN` (-1) where the server only said that another commit came first.
    """

    reason = Reason.CONFLICT

    def __init__(self, actor: str, attempted: int, current: int) -> None:
        where = "another commit came first" if current == VERSION_UNKNOWN else f"the log is at version {current}"
        super().__init__(f"{actor}: an append after version {attempted} was refused, {where}; read the new events and decide again")
        self.actor = actor
        self.attempted = attempted
        self.current = current


class InvalidName(PermanentError):
    """A name that could not be a subject token or a resource."""

    reason = Reason.INVALID_COMMAND


class InvalidEnvelope(PermanentError):
    """Bytes, headers or arguments that are not a command, commit or reply of this protocol."""

    reason = Reason.INVALID_COMMAND


class ModelInvalid(PermanentError):
    """A model that does not compile.

    Attributes:
        problems: one line for each problem, each with the path of its field.
    """

    reason = Reason.UNKNOWN_MODEL

    def __init__(self, model: str, problems: tuple[str, ...]) -> None:
        super().__init__(f"model {model} is not valid: " + "; ".join(problems))
        self.model = model
        self.problems = problems


class CommandFailed(PermanentError):
    """A handler raised or computed something impossible; nothing was stored."""

    reason = Reason.COMMAND_FAILED


class EventInvalid(PermanentError):
    """An event that its model cannot apply: a stored one quarantines the actor, a new one is not stored."""

    reason = Reason.QUARANTINED


class CommitTooLarge(PermanentError):
    """The events of one command do not fit into one message of the server."""

    reason = Reason.COMMIT_TOO_LARGE


class PayloadTooLarge(PermanentError):
    """A message is longer than the server's `max_payload`; it was not sent."""

    reason = Reason.COMMIT_TOO_LARGE


class PermissionDenied(PermanentError):
    """NATS does not let this user publish, or subscribe, to a subject.

    What was published on a subject that one may not publish to reached nobody. Who may not subscribe hears nothing, also no answers to what was sent before.

    Attributes:
        subject: as the server names it.
        action: what is denied, the name of the permission.
    """

    def __init__(self, subject: str, action: Literal["publish", "subscribe"], *, consequence: str = "") -> None:
        """Describe what is denied; `consequence` says what that leaves undone."""
        left = f", so {consequence}" if consequence else ""
        super().__init__(
            f'NATS does not let this user {action} to "{subject}"{left}: allow it under permissions, {action}, of the user in the server\'s configuration, or take another user'
        )
        self.subject = subject
        self.action: Literal["publish", "subscribe"] = action


class JetStreamError(PermanentError):
    """Any refusal by JetStream that has no meaning of its own here.

    Attributes:
        code: the HTTP-like code of the answer.
        error_code: the server's own error number (`err_code`).
    """

    def __init__(self, code: int, error_code: int, description: str) -> None:
        super().__init__(f"JetStream refused ({code}, error {error_code}): {description}")
        self.code = code
        self.error_code = error_code
        self.description = description


class KubeNotFound(PermanentError):
    """The API server knows no such object (404)."""


class KubeAlreadyExists(PermanentError):
    """A create met an object of that name (409, AlreadyExists)."""

    reason = Reason.CONFLICT


class KubeForbidden(PermanentError):
    """The API server does not allow the call (401, 403)."""


class KubeInvalid(PermanentError):
    """The API server refused the object's content (400, 422).

    Attributes:
        causes: `field: message` lines, as far as the server named fields.
    """

    def __init__(self, message: str, causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.causes = causes


class SettingsInvalid(PermanentError):
    """A setting that cannot work; the message names the setting and what is allowed."""


def reason_of(error: BaseException) -> Reason:
    """Return the wire reason of an error; everything unknown is `Internal`."""
    return error.reason if isinstance(error, AetherError) else Reason.INTERNAL


UNANSWERED: Final = (RequestTimeout, NoResponders, PermissionDenied, Disconnected, Backpressure, InvalidEnvelope)
"""What it means that another process has not answered a question, or not with what can be read."""
