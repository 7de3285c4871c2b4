"""The requests of JetStream's API, each as nats-server 2.15 answers it; and the engine that a broker asks."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from math import inf
from typing import Any, Final

import msgspec

from aether_api.headers import encode_headers
from aether_nats.jetstream_wire import ERROR_NO_MESSAGE, ERROR_NO_SEQUENCE, ERROR_STREAM_EXISTS, ERROR_STREAM_NOT_FOUND, StreamConfig
from tests.simulation.server.broker import Broker, Publication, matches_subject, overlaps
from tests.simulation.server.consumers import Consumers
from tests.simulation.server.jetstream import JetStreamEngine, build_block, build_error, build_json, build_place, build_status
from tests.simulation.server.stream import Stored, Stream

API: Final = "$JS.API."
ERROR_NOT_CLUSTERED: Final = 10074
ERROR_DELETE_DENIED: Final = 10057
ERROR_OVERLAP: Final = 10065

Answer = tuple[bytes, bytes]


class ApiEngine(JetStreamEngine):
    """JetStream with its API."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(broker)
        broker.engine = self
        self._consumers = Consumers(broker)

    def take(self, publication: Publication) -> bool:
        """Store what a stream takes, answer what the API is asked."""
        if publication.subject.startswith(API):
            return self._take_request(publication)
        stream = self.find_stream(publication.subject)
        if stream is None or stream.leaderless_s > self.clock.now_s():
            return stream is not None and self.hazards.is_deaf()
        self.write(stream, publication)
        return True

    def end(self) -> None:
        """Forget what is in memory only, consumers too."""
        super().end()
        self._consumers.forget_all()

    def _take_request(self, message: Publication) -> bool:
        verb, name = _split(message.subject.removeprefix(API))
        question: dict[str, Any] = json.loads(message.payload) if message.payload else {}
        if verb == "DIRECT.GET":
            return self._get_directly(name, question, message.reply)
        if verb == "CONSUMER.MSG.NEXT":
            stream_name, _, consumer = name.partition(".")
            return self._consumers.pull(stream_name, consumer, question, message.reply)
        if verb == "STREAM.NAMES":
            self.broker.answer(message.reply, self._names(question))
        elif verb == "STREAM.CREATE":
            self.broker.answer(message.reply, self._create(message.payload))
        else:
            self._ask_leader(verb, name, question, message)
        return True

    def _ask_leader(self, verb: str, name: str, question: dict[str, Any], message: Publication) -> None:
        name, _, rest = name.partition(".")
        stream = self.streams.get(name)
        if stream is None:
            return self.broker.answer(message.reply, build_error(404, ERROR_STREAM_NOT_FOUND, "stream not found"))
        if stream.leaderless_s > self.clock.now_s():
            return None
        match verb:
            case "STREAM.INFO":
                answer = build_json(_describe(stream, question.get("subjects_filter", "")))
            case "STREAM.UPDATE":
                stream.config = msgspec.json.decode(message.payload, type=StreamConfig)
                answer = build_json(_describe(stream, ""))
            case "STREAM.DELETE":
                self.delete(stream)
                answer = build_json({"success": True})
            case "STREAM.PURGE":
                purged = stream.purge(question.get("filter", ">"), question.get("keep", 0), question.get("seq", 0), self.clock.now_s())
                self.broker.trace(f"{name} purges {purged} of {question}")
                answer = build_json({"success": True, "purged": purged})
            case "STREAM.MSG.GET":
                answer = _build_message(_find_message(stream, question))
            case "STREAM.MSG.DELETE":
                answer = self._delete(stream, question["seq"])
            case "CONSUMER.CREATE":
                self._consumers.create(stream, question["config"])
                answer = build_json({"name": question["config"]["name"]})
            case "CONSUMER.DELETE":
                answer = build_json({"success": self._consumers.delete(name, rest)})
            case _:
                answer = build_error(503, 10039, f"the simulated server does not know {verb}")
        return self.broker.answer(message.reply, answer)

    def _create(self, payload: bytes) -> Answer:
        config = msgspec.json.decode(payload, type=StreamConfig)
        existing = self.streams.get(config.name)
        if existing is not None:
            return (
                build_json(_describe(existing, ""))
                if existing.config == config
                else build_error(400, ERROR_STREAM_EXISTS, "stream name already in use with a different configuration")
            )
        if config.num_replicas > self.hazards.replicas_max:
            return build_error(500, ERROR_NOT_CLUSTERED, "replicas > 1 not supported in non-clustered mode")
        if any(overlaps(one, other) for stream in self.streams.values() for one in stream.config.subjects for other in config.subjects):
            return build_error(400, ERROR_OVERLAP, "subjects overlap with an existing stream")
        return build_json(_describe(self.create(config), ""))

    def _names(self, question: dict[str, Any]) -> Answer:
        wanted, offset = question.get("subject", ">"), question.get("offset", 0)
        names = [name for name, stream in sorted(self.streams.items()) if any(overlaps(subject, wanted) for subject in stream.config.subjects)]
        return build_json({"total": len(names), "offset": offset, "limit": 1024, "streams": names[offset : offset + 1024] or None})

    def _delete(self, stream: Stream, sequence: int) -> Answer:
        message = stream.find(sequence)
        if stream.config.deny_delete:
            return build_error(400, ERROR_DELETE_DENIED, "message delete not permitted")
        if message is None:
            return build_error(400, ERROR_NO_SEQUENCE, f"sequence {sequence} not found")
        stream.remove(message, self.clock.now_s())
        return build_json({"success": True})

    # Direct Get.

    def _get_directly(self, target: str, question: dict[str, Any], reply: str) -> bool:
        name, _, subject = target.partition(".")
        stream = self.streams.get(name)
        if stream is None or not stream.config.allow_direct:
            return False
        lag_s = self.hazards.replica_lag_s(stream.config.num_replicas)
        at_s = self.clock.now_s() - lag_s if lag_s else inf
        if subject:
            question = {"last_by_subj": subject}
        if "multi_last" in question:
            last = stream.last_each(question["multi_last"], at_s, question.get("up_to_seq", 0) or inf)
            self.broker.answer(reply, *_build_train(stream, [message for message in last if message.sequence >= question.get("seq", 0)], 1024, question.get("max_bytes", inf)))
        elif "batch" in question:
            found = [message for message in stream.select(question.get("next_by_subj", ">"), at_s) if message.sequence >= question.get("seq", 1)]
            self.broker.answer(reply, *_build_train(stream, found, question["batch"], question.get("max_bytes", inf)))
        else:
            found_one = _find_message(stream, question, at_s)
            self.broker.answer(reply, (build_block(found_one.lines + build_place(stream, found_one)), found_one.payload) if found_one else build_status("404 Message Not Found"))
        return True


def _split(request: str) -> tuple[str, str]:
    """Return what is asked, and of which stream."""
    words = request.split(".")
    length = 3 if words[1] == "MSG" else 2
    return ".".join(words[:length]), ".".join(words[length:])


def _describe(stream: Stream, subjects_filter: str) -> dict[str, Any]:
    messages = list(stream.messages.values())
    state: dict[str, Any] = {
        "messages": len(messages),
        "bytes": sum(len(message.payload) + len(message.lines) for message in messages),
        "first_seq": stream.first_sequence,
        "last_seq": stream.last_sequence,
        "last_ts": messages[-1].time if messages else "",
        "num_subjects": len(stream.subjects),
    }
    if subjects_filter:
        state["subjects"] = {subject: len(found) for subject, found in stream.subjects.items() if matches_subject(subjects_filter, subject)}
    return {"config": msgspec.to_builtins(stream.config), "state": state, "created": stream.created}


def _find_message(stream: Stream, question: dict[str, Any], at_s: float = inf) -> Stored | None:
    if "last_by_subj" in question:
        return next(iter(stream.last_each([question["last_by_subj"]], at_s)[-1:]), None)
    if "next_by_subj" in question:
        return next((message for message in stream.select(question["next_by_subj"], at_s) if message.sequence >= question.get("seq", 1)), None)
    return stream.find(question["seq"], at_s)


def _build_message(message: Stored | None) -> Answer:
    if message is None:
        return build_error(404, ERROR_NO_MESSAGE, "no message found")
    found = {"subject": message.subject, "seq": message.sequence, "time": message.time, "data": base64.b64encode(message.payload).decode()}
    if message.lines:
        found["hdrs"] = base64.b64encode(build_block(message.lines)).decode()
    return build_json({"message": found})


def _build_train(stream: Stream, found: Sequence[Stored], batch: int, max_bytes: float) -> list[Answer]:
    """Return the messages of a batch, up to the one that fills it, and the status that ends it; each names the one before."""
    if not found:
        return [build_status("404 Message Not Found")]
    train, before, size = list[Answer](), 0, 0
    for place, message in enumerate(found[:batch], 1):
        if size >= max_bytes:
            break
        size += len(message.payload) + len(message.lines)
        train.append((build_block(message.lines + build_place(stream, message) + _build_counts(len(found) - place, before)), message.payload))
        before = message.sequence
    return [*train, (b"NATS/1.0 204 EOB\r\n" + _build_counts(len(found) - len(train), before) + b"\r\n", b"")]


def _build_counts(pending: int, before: int) -> bytes:
    return encode_headers({"Nats-Num-Pending": str(pending), "Nats-Last-Sequence": str(before)})
