"""Brings a command to its actor: to the VM here, to the live VM elsewhere, or to the pod where it belongs.

Commands arrive on four kinds of subject. `cmd` reaches the live VM directly. `call` reaches any pod, and a forwarded call
the one pod that another pod chose; both end here in `_route`, which looks again and again until the deadline, since the
actor may be moving: VM here; live VM elsewhere; the pod that the resource's placement names; without a resource, and if the
model allows it, the pod that rendezvous hashing names. A call is passed on at most twice. `find` reaches all pods, when an earlier
try met silence: whoever has the actor, or gets it before the deadline, answers; nobody passes it on.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Final, Literal

import msgspec

from aether_api import logs
from aether_api.errors import AetherError, Disconnected, InvalidEnvelope, InvalidName, NoResponders, PayloadTooLarge, Reason, RequestTimeout, reason_of
from aether_api.identity import ActorId, CommandId, PodUid
from aether_api.messages import Command, Reply, build_command_headers, build_error, decode_reply, encode_reply, make_encodable, parse_command
from aether_api.subjects import INBOX_HINT, call_wildcard, command_subject, find_wildcard, forward_subject, forward_wildcard, parse_command_subject
from aether_nats.connection import NatsConnection, Subscription
from aether_nats.message import Message
from aether_runtime.answers import MOVING_RETRY_MS, build_late, build_moving
from aether_runtime.core.group import Waiting
from aether_runtime.lookups import Lookup, Lookups
from aether_runtime.ports import DesiredActor, Directory
from aether_runtime.presence import choose_pod
from aether_runtime.vm import VirtualMachine

if TYPE_CHECKING:
    from aether_runtime.runtime import Runtime

logger = logging.getLogger(__name__)

CALL_QUEUE: Final = "call"
"""Queue group of all pods of a namespace: each call reaches one of them."""

FORWARDS_MAX: Final = 2
"""Times that a call is passed on: once to where it belongs, once more if that changed meanwhile."""

SHORT_MESSAGE: Final = 1000
"""Characters kept of the message of a reply that does not fit into one of NATS."""

CALLS_MAX: Final = 4096
"""Calls that look for their actor at once; beyond, callers are told to come back."""

CALLS_BYTES_MAX: Final = 33_554_432
"""Bytes of payload that they may hold together, half as much as what waits for VMs."""

LOOK_AGAIN_S: Final = 0.05
"""Seconds between looks for an actor that moves: a fraction of a hand-over."""

HAND_OVER_S: Final = 10.0
"""Seconds after pods came or went in which an actor without a resource may still live where it belonged before: its VM is asked first."""

ANSWER_EARLY_S: Final = 0.1
"""Seconds before its deadline at which a caller is told that its actor was not found: later he would not hear it any more. With very many who look it is
as much longer as it takes to answer all of them at once, as when a pod is lost."""

ANSWERS_AT_ONCE: Final = 512
"""Callers who can be answered in that time."""

SEARCHES_SWIFT: Final = 64
"""Calls that may look so often; with more of them each looks more seldom, so that a lost pod with a thousand callers costs the others nothing."""

LOOK_AGAIN_MAX_S: Final = 1.0
"""Seconds between looks when very many calls look."""

LIVE_ANSWER_S: Final = 1.0
"""Seconds for a VM that may still live elsewhere to answer; then it is asked whether it is there at all, since its process may be frozen."""

HINT_TIMEOUT_S: Final = 1.0
"""Seconds for a live VM to take a hint: a round trip, unless its process is frozen."""

WAKE_LOOKUP_S: Final = 10.0
"""Seconds for the directory to say where an actor is whose inbox holds something; the next sweep asks again."""

STOPPING: Final = "this process is stopping; send the command again with the same id"
NOT_STARTED: Final = "this runtime was not started; call `await runtime.start()`, or enter `async with runtime:`, before you send it messages"
"""Why a runtime that does not run takes no command."""

Answer = Callable[[Reply], None]

VmProvider = Callable[[ActorId], VirtualMachine | None]
"""Supplies the VM that answers an actor's calls in this process; None where it has none, and the call goes where the actor lives."""


@dataclass(frozen=True, slots=True)
class ServeHere:
    """The VM of this process takes it."""

    vm: VirtualMachine


@dataclass(frozen=True, slots=True)
class Forward:
    """Another process takes it."""

    subject: str
    pod: PodUid


@dataclass(frozen=True, slots=True)
class AskLive:
    """Whoever still has a live VM takes it; if nobody has, the actor is held here."""

    desired: DesiredActor


@dataclass(frozen=True, slots=True)
class Refuse:
    """Nobody ever will."""

    reply: Reply


@dataclass(frozen=True, slots=True)
class LookAgain:
    """Nobody can right now, unless a VM is live where nothing tells of it yet."""


Route = ServeHere | Forward | AskLive | Refuse | LookAgain


class Router:
    """Routes commands for one runtime."""

    def __init__(self, connection: NatsConnection, directory: Directory, runtime: Runtime) -> None:
        self._connection = connection
        self._runtime = runtime
        self._loop = asyncio.get_running_loop()
        self._calls = self._calls_bytes = 0
        self._lookups = Lookups(directory, runtime.spawn)
        self._find_vm: VmProvider = _find_none

    def set_vm_provider(self, provider: VmProvider) -> None:
        """Say who supplies the VMs of this process: the runtime does so itself; a host that keeps VMs of its own says it instead.

        The provider is asked for each call in the read loop, so it must be quick and must not wait.
        """
        self._find_vm = provider

    def subscribe(self) -> tuple[Subscription, ...]:
        """Begin to take calls of the namespace and forwarded ones."""
        namespace, uid = self._runtime.config.namespace, self._runtime.config.pod.uid
        return (
            self._connection.subscribe(call_wildcard(namespace), self._on_call, CALL_QUEUE),
            self._connection.subscribe(forward_wildcard(namespace, uid), self._on_call),
            self._connection.subscribe(find_wildcard(namespace), self._on_find),
        )

    @property
    def searching(self) -> int:
        """Calls that look for their actor now."""
        return self._calls

    def on_direct(self, vm: VirtualMachine, subject: bytes, reply: bytes, raw_headers: bytes, payload: bytes) -> None:
        """Hand a message of a VM's own subject to the VM."""
        name = _name_of(subject[subject.rfind(b".") + 1 :])
        if name == INBOX_HINT:
            return self._take_hint(vm, reply)
        try:
            command = parse_command(vm.desired.actor, name, raw_headers, payload, now_s=time.time(), fresh_id=_fresh_id)
        except InvalidEnvelope as exc:
            return self._refuse_malformed(reply, exc)
        vm.process_command(Waiting(command, self._loop.time() + command.timeout_s, partial(self._answer, reply)))

    def _take_hint(self, vm: VirtualMachine, reply: bytes) -> None:
        if self._runtime.inbox is not None:
            self._runtime.inbox.drain(vm.get_actor_id())
        try:
            self._connection.respond(reply, b"")
        except AetherError as exc:
            logger.debug("a hint could not be answered", extra={logs.REASON: str(exc)})

    async def hint(self, actor: ActorId, within_s: float = HINT_TIMEOUT_S) -> bool:
        """Tell a live VM, wherever it is, that something waits in its inbox; returns whether there is one.

        Raises:
            Disconnected: nobody can be told.
        """
        try:
            answer = await self._connection.request(command_subject("cmd", actor, INBOX_HINT), b"", b"", within_s)
        except (NoResponders, RequestTimeout):
            return False
        return not answer.payload  # an earlier release takes it for a command that it does not know

    def serve(self, command: Command, answer: Answer) -> None:
        """Find the actor of a command and have it answered, whatever that takes within the deadline."""
        self._search(self._build_waiting(command, answer))

    def _search(self, waiting: Waiting) -> None:
        command, answer = waiting.command, waiting.answer
        if not self._runtime.is_running:
            message = STOPPING if self._runtime.is_leaving else NOT_STARTED
            answer(build_error(Reason.BUSY, message, command_id=command.id, retry_after_ms=MOVING_RETRY_MS))
            return
        if not self._has_room_for_call(command):
            message = f"{self._calls} calls of {self._calls_bytes:,} bytes look for their actors already; send the command again with the same id"
            answer(build_error(Reason.BUSY, message, command_id=command.id, retry_after_ms=MOVING_RETRY_MS))
            return
        self._begin_call(command)
        self._runtime.spawn(self._serve(waiting), f"call {command.actor}")

    async def wake(self, actor: ActorId) -> PodUid | None:
        """Activate an actor if it lives here; return the pod where it lives if that is another one."""
        with self._lookups.open(actor) as lookup:
            route = await self._route(Command(actor, "Wake", CommandId(""), b"", "", 0.0, 0.0), lookup, WAKE_LOOKUP_S)
        if isinstance(route, AskLive):
            self._runtime.activate(route.desired)
        return route.pod if isinstance(route, Forward) else None

    def _on_call(self, message: Message) -> None:
        waiting = self._read_waiting(message)
        if waiting is not None and not self._hand_over(waiting):
            self._search(waiting)

    def _on_find(self, message: Message) -> None:
        waiting = self._read_waiting(message)
        if waiting is None or self._hand_over(waiting) or not self._runtime.is_running or not self._has_room_for_call(waiting.command):
            return  # silence: the pod whose actor it is may be another one
        self._begin_call(waiting.command)
        self._runtime.spawn(self._serve_found(waiting), f"find {waiting.command.actor}")

    def _has_room_for_call(self, command: Command) -> bool:
        return self._calls < CALLS_MAX and self._calls_bytes + len(command.payload) <= CALLS_BYTES_MAX

    def _begin_call(self, command: Command) -> None:
        self._calls += 1
        self._calls_bytes += len(command.payload)

    def _end_call(self, command: Command) -> None:
        self._calls -= 1
        self._calls_bytes -= len(command.payload)

    def _read_waiting(self, message: Message) -> Waiting | None:
        try:
            actor, name = parse_command_subject(message.subject)
            command = parse_command(actor, name, message.raw_headers, message.payload, now_s=time.time(), fresh_id=_fresh_id)
        except (InvalidName, InvalidEnvelope) as exc:
            self._refuse_malformed(message.raw_reply, exc)
            return None
        return self._build_waiting(command, partial(self._answer, message.raw_reply))

    def _hand_over(self, waiting: Waiting) -> bool:
        """Give a command to the VM here if that is ready, and tell whether it was."""
        vm = self._find_vm(waiting.command.actor)
        if vm is None or not vm.is_ready:
            return False
        vm.process_command(waiting)
        return True

    async def _serve(self, waiting: Waiting) -> None:
        try:
            with self._lookups.open(waiting.command.actor) as lookup:
                await self._serve_in_time(waiting, lookup)
        except AetherError as exc:
            waiting.answer(build_error(reason_of(exc), str(exc), command_id=waiting.command.id))
        except asyncio.CancelledError:
            waiting.answer(_nowhere(waiting))
            raise
        finally:
            self._end_call(waiting.command)

    async def _serve_in_time(self, waiting: Waiting, lookup: Lookup) -> None:
        may_have_run = False
        give_up = waiting.deadline - min(ANSWER_EARLY_S * (1 + self._calls / ANSWERS_AT_ONCE), waiting.command.timeout_s / 2)
        while self._loop.time() < give_up:
            route = await self._route(waiting.command, lookup, LOOK_AGAIN_S)
            if isinstance(route, ServeHere):
                return route.vm.process_command(waiting)
            if isinstance(route, Refuse):
                return waiting.answer(route.reply)
            within_s = max(LOOK_AGAIN_S, give_up - self._loop.time())
            reply = await self._ask(route.subject if isinstance(route, Forward) else "", waiting, within_s, may_start_here=isinstance(route, AskLive))
            if isinstance(reply, Reply):
                return waiting.answer(reply)
            may_have_run |= reply == "silent"
            if isinstance(route, AskLive) and self._runtime.activate(route.desired) is not None:
                continue
            await asyncio.sleep(min(self._look_again_s, max(0.0, give_up - self._loop.time())))
        waiting.answer(build_late(waiting.command.id) if may_have_run else _nowhere(waiting, lookup.problem))

    @property
    def _look_again_s(self) -> float:
        return min(LOOK_AGAIN_MAX_S, LOOK_AGAIN_S * max(1.0, self._calls / SEARCHES_SWIFT))

    async def _serve_found(self, waiting: Waiting) -> None:
        """Serve a command that all pods have heard, if its actor is here, comes here, or belongs here; else say nothing."""
        try:
            with self._lookups.open(waiting.command.actor) as lookup:
                await self._serve_found_in_time(waiting, lookup)
        except AetherError as exc:
            waiting.answer(build_error(reason_of(exc), str(exc), command_id=waiting.command.id))
        finally:
            self._end_call(waiting.command)

    async def _serve_found_in_time(self, waiting: Waiting, lookup: Lookup) -> None:
        command = msgspec.structs.replace(waiting.command, forwards=FORWARDS_MAX)
        while self._loop.time() < waiting.deadline:
            is_chosen = choose_pod(command.actor, self._runtime.presence.pods.live()) == self._runtime.config.pod.uid
            route = await self._route(command, lookup, LOOK_AGAIN_S) if is_chosen else self._route_here(command) or LookAgain()
            if isinstance(route, ServeHere):
                return route.vm.process_command(waiting)
            if isinstance(route, Refuse):
                return waiting.answer(route.reply)
            if isinstance(route, AskLive) and self._runtime.activate(route.desired) is not None:
                continue  # a VM that lives elsewhere was asked already, together with all others
            await asyncio.sleep(self._look_again_s)

    def _route_here(self, command: Command) -> Route | None:
        """Return where a command goes if its actor lives or sleeps here."""
        vm = self._find_vm(command.actor)
        if vm is not None:
            return ServeHere(vm)
        asleep = self._runtime.passivation.find(command.actor)
        return None if asleep is None else self._refuse_model(command) or self._adopt(asleep, command)

    async def _route(self, command: Command, lookup: Lookup, within_s: float) -> Route:
        """Decide where a command goes now; a directory that does not answer in time is not waited for, since a VM may be live meanwhile."""
        here = self._route_here(command)
        if here is not None:
            return here
        if not self._runtime.is_running or not await lookup.ask(within_s) or not lookup.known:
            return LookAgain()
        home = lookup.home
        if home is None:
            return self._route_on_demand(command)
        if home.suspended:
            return Refuse(build_error(Reason.SUSPENDED, "spec.suspend is true; set it to false to go on", command_id=command.id))
        if not home.pod_uid:
            return LookAgain()
        if home.pod_uid == self._runtime.config.pod.uid:
            return self._refuse_model(command) or self._adopt(home.desired, command)
        return self._forward_to(home.pod_uid, command)

    def _route_on_demand(self, command: Command) -> Route:
        actor = command.actor
        model = self._runtime.find_model(actor.model)
        if model is None:
            return self._refuse_model(command) or LookAgain()
        if not model.on_demand:
            message = f"there is no Actor with model {actor.model} and id {actor.id}; apply one, or set onDemand in the ActorModel"
            return Refuse(build_error(Reason.UNKNOWN_ACTOR, message, command_id=command.id))
        chosen = choose_pod(actor, self._runtime.presence.pods.live())
        if chosen is None or chosen == self._runtime.config.pod.uid:
            may_live = self._runtime.presence.pods.settled_s < HAND_OVER_S and not self._runtime.is_leaving
            return AskLive(DesiredActor(actor)) if may_live else self._adopt(DesiredActor(actor), command)
        return self._forward_to(chosen, command)

    def _refuse_model(self, command: Command) -> Refuse | None:
        missing = self._runtime.explain_model(command.actor.model)
        return Refuse(build_error(Reason.UNKNOWN_MODEL, missing, command_id=command.id)) if missing else None

    def _adopt(self, desired: DesiredActor, command: Command) -> Route:
        vm = self._runtime.activate(desired)
        if vm is None and self._runtime.is_leaving:
            return Refuse(build_moving(command.id))
        return LookAgain() if vm is None else ServeHere(vm)

    def _forward_to(self, pod: PodUid, command: Command) -> Route:
        if command.forwards >= FORWARDS_MAX:
            return LookAgain()
        return Forward(forward_subject(command.actor.namespace, pod, command.actor, command.name), pod)

    async def _ask(self, subject: str, waiting: Waiting, within_s: float, *, may_start_here: bool) -> Reply | Literal["silent"] | None:
        """Pass a command on: to the live VM if there is one, else to `subject` unless that is empty; None when nobody took it.

        Args:
            may_start_here: whether the actor starts here if nobody took it. Then a VM whose process is frozen is not waited for, which is `silent`: it has the
                command, and the log decides between the two.
        """
        command = waiting.command
        headers = build_command_headers(msgspec.structs.replace(command, forwards=command.forwards + 1, timeout_s=within_s))
        live = command_subject("cmd", command.actor, command.name)
        for target in (live, subject) if subject else (live,):
            try:
                answer = self._connection.request(target, command.payload, headers, within_s)
                try:
                    if may_start_here and not await self._is_alive(command.actor, answer, within_s / 2):
                        return "silent"
                    return decode_reply((await answer).payload)
                finally:
                    answer.cancel()
            except NoResponders:
                continue
            except (RequestTimeout, Disconnected, InvalidEnvelope) as exc:
                message = f"the pod that should hold the actor did not answer: {exc}; repeat the command with the same id"
                return build_error(Reason.UNKNOWN, message, command_id=command.id, retry_after_ms=MOVING_RETRY_MS)
        return None

    async def _is_alive(self, actor: ActorId, answer: asyncio.Future[Message], within_s: float) -> bool:
        """Wait a moment for an answer, and tell whether it came, or whoever owes it at least takes a hint; each for so long at most."""
        await asyncio.wait({answer}, timeout=min(LIVE_ANSWER_S, within_s))
        return answer.done() or await self.hint(actor, min(HINT_TIMEOUT_S, within_s))

    def _refuse_malformed(self, reply: bytes, error: AetherError) -> None:
        self._answer(reply, Reply("rejected", reason=Reason.INVALID_COMMAND.value, message=str(error)))

    def _build_waiting(self, command: Command, answer: Answer) -> Waiting:
        return Waiting(command, self._loop.time() + command.timeout_s, answer)

    def _answer(self, subject: bytes, reply: Reply) -> None:
        try:
            try:
                self._connection.respond(subject, _encode(reply))
            except PayloadTooLarge as exc:
                self._connection.respond(subject, _encode(_shorten(reply, exc)))
        except AetherError as exc:
            logger.debug("a reply could not be sent; the caller asks again", extra={logs.REASON: str(exc)})


def _encode(reply: Reply) -> bytes:
    """Encode a reply; the caller of one that cannot be encoded is told that, instead of nothing."""
    try:
        return encode_reply(reply)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        problem = make_encodable(f"{type(exc).__name__}: {exc}")
        logger.error("a reply cannot be written as JSON", extra={logs.REASON: problem})
        return encode_reply(
            build_error(Reason.COMMAND_FAILED, f"the answer cannot be written as JSON ({problem}); correct the model", command_id=reply.command_id, version=reply.version)
        )


def _shorten(reply: Reply, problem: PayloadTooLarge) -> Reply:
    """Return what matters most of a reply that is too long: what became of the command, and why there is no more."""
    return msgspec.structs.replace(reply, events=(), state=None, message=f"{reply.message[:SHORT_MESSAGE]} (shortened, without events and state: {problem})".strip())


def _find_none(actor: ActorId) -> VirtualMachine | None:
    return None


@lru_cache(maxsize=256)
def _name_of(token: bytes) -> str:
    """Return the name of a command from its subject; there are few, and each comes often."""
    return token.decode()


def _fresh_id() -> str:
    return secrets.token_hex(8)


def _nowhere(waiting: Waiting, problem: str = "") -> Reply:
    """Return the answer to a command whose actor was not found, or of which the directory could not say where it lives."""
    message = f"the actor has no live VM, and its resource could not be looked up: {problem}" if problem else "no pod holds the actor now; it may be moving"
    return build_error(Reason.BUSY, message, command_id=waiting.command.id, retry_after_ms=MOVING_RETRY_MS)
