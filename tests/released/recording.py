"""Stored messages as lines of text: every byte is there, and a person can read them and see what differs.

A line is one message. A long run of commits of one actor is one line, with a template for what repeats and a row for what does not:
a thousand commits are then a tenth of the size.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aether_api.headers import FIRST_LINE

RUN_MIN: Final = 100
"""Commits that make a run worth a template."""

FIELDS: Final = ("sequence", "expected", "commit", "n", "version", "back", "command", "time")
"""What differs from commit to commit of a run, in the order of a row."""

FOLDER: Final = Path(__file__).parent

_COMMIT: Final = re.compile(
    r"Nats-Expected-Last-Subject-Sequence: (?P<expected>\d+)\r\nAether-Commit: (?P<commit>\S+)\r\nAether-Version: (?P<version>\d+)-(?P=version)\r\n"
    r"Aether-N: (?P<n>\d+)\r\nAether-Back: (?P<back>\S*)\r\n"
)
_EVENT: Final = re.compile(r'"id":"(?P<version>\d+)".*"time":"(?P<time>[^"]+)".*"commandid":"(?P<command>[^"]+)"')


@dataclass(frozen=True)
class Recorded:
    """A message as a stream held it."""

    stream: str
    sequence: int
    subject: str
    headers: bytes
    payload: bytes


def find_versions() -> list[str]:
    """Return the released versions that are on record."""
    return sorted(path.name for path in FOLDER.glob("v*") if path.is_dir())


def write_messages(path: Path, messages: Sequence[Recorded]) -> None:
    """Write messages as lines; they read back as they are, or this fails."""
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in _build_lines(messages)))
    if read_messages(path) != list(messages):
        raise ValueError(f"{path} does not read back as it was written")


def read_messages(path: Path) -> list[Recorded]:
    """Read the messages of a release, in the order of their streams."""
    return [message for line in path.read_text().split("\n") if line for message in _parse_line(json.loads(line))]


def _build_lines(messages: Sequence[Recorded]) -> Iterator[dict[str, Any]]:
    run: list[tuple[Recorded, dict[str, str]]] = []
    for message in messages:
        found = _find_fields(message)
        if run and (found is None or _cut(*run[0]) != _cut(message, found)):
            yield from _build_run(run)
            run = []
        if found is None:
            yield _build_line(message)
        else:
            run.append((message, found))
    yield from _build_run(run)


def _build_run(run: list[tuple[Recorded, dict[str, str]]]) -> Iterator[dict[str, Any]]:
    if len(run) < RUN_MIN:
        yield from (_build_line(message) for message, _ in run)
        return
    message, found = run[0]
    headers, payload = _cut(message, found)
    rows = [" ".join(fields[name] for name in FIELDS) for _, fields in run]
    yield {"stream": message.stream, "subject": message.subject, "headers": _split(headers), "payload": payload, "rows": rows}


def _find_fields(message: Recorded) -> dict[str, str] | None:
    """Return what would differ in a run, of a commit of one event."""
    commit, event = _COMMIT.search(message.headers.decode()), _EVENT.search(message.payload.decode())
    if commit is None or event is None or commit["version"] != event["version"] or message.payload.count(b'"id"') != 1 or not commit["back"]:
        return None
    return {"sequence": str(message.sequence), **commit.groupdict(), **event.groupdict()}


def _cut(message: Recorded, fields: dict[str, str]) -> tuple[str, str]:
    """Return headers and payload with the names of fields in their places."""
    commit = "Nats-Expected-Last-Subject-Sequence: <expected>\r\nAether-Commit: <commit>\r\nAether-Version: <version>-<version>\r\nAether-N: <n>\r\nAether-Back: <back>\r\n"
    payload = message.payload.decode()
    for name, marked in (("version", '"id":"{}"'), ("time", '"time":"{}"'), ("command", '"commandid":"{}"')):
        payload = payload.replace(marked.format(fields[name]), marked.format(f"<{name}>"))
    return _COMMIT.sub(commit, message.headers.decode()), payload


def _build_line(message: Recorded) -> dict[str, Any]:
    try:
        payload: str | dict[str, str] = message.payload.decode()
    except UnicodeDecodeError:
        payload = {"base64": base64.b64encode(message.payload).decode()}
    return {"stream": message.stream, "sequence": message.sequence, "subject": message.subject, "headers": _split(message.headers.decode()), "payload": payload}


def _parse_line(line: dict[str, Any]) -> Iterable[Recorded]:
    headers, payload = _join(line["headers"]), line["payload"]
    if "rows" not in line:
        raw = base64.b64decode(payload["base64"]) if isinstance(payload, dict) else payload.encode()
        return [Recorded(line["stream"], line["sequence"], line["subject"], headers.encode(), raw)]
    rows = [dict(zip(FIELDS, row.split(" "), strict=True)) for row in line["rows"]]
    return [Recorded(line["stream"], int(row["sequence"]), line["subject"], _fill(headers, row), _fill(payload, row)) for row in rows]


def _fill(template: str, fields: dict[str, str]) -> bytes:
    return re.sub("<([a-z]+)>", lambda found: fields[found[1]], template).encode()


def _split(headers: str) -> list[str]:
    """Return the lines of a header block without its frame; none for a message without headers."""
    return headers.split("\r\n")[1:-2]


def _join(lines: list[str]) -> str:
    return "\r\n".join([FIRST_LINE.decode(), *lines, "", ""]) if lines else ""
