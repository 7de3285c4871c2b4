"""Names of the fields that log records carry, and the one place where logging is set up.

Operators search and alert on these names, so they are public: changing one is a breaking change. Records never carry
payloads or secrets.
"""

from __future__ import annotations

import logging
import sys
from math import inf
from typing import Final

import orjson

ACTOR_ID: Final = "actor_id"
MODEL: Final = "model"
NAMESPACE: Final = "namespace"
VERSION: Final = "version"
SEQUENCE: Final = "sequence"
POD: Final = "pod"
POD_UID: Final = "pod_uid"
EPOCH: Final = "epoch"
POOL: Final = "pool"
COMMAND_ID: Final = "command_id"
REASON: Final = "reason"
DURATION_S: Final = "duration_s"
COUNT: Final = "count"
KIND: Final = "kind"
NAME: Final = "name_of_object"
URL: Final = "url"

FIELDS: Final = (ACTOR_ID, MODEL, NAMESPACE, VERSION, SEQUENCE, POD, POD_UID, EPOCH, POOL, COMMAND_ID, REASON, DURATION_S, COUNT, KIND, NAME, URL)

WARN_EVERY_S: Final = 60.0
"""Seconds between two records of what may be met thousands of times a minute."""


class Seldom:
    """Says whether what has one cause, and is met again and again, is due to be told."""

    __slots__ = ("_told_s",)

    def __init__(self) -> None:
        self._told_s = -inf

    def is_due(self, now_s: float) -> bool:
        """Whether it was not told for `WARN_EVERY_S`; who hears that it is due tells it."""
        is_due = now_s >= self._told_s + WARN_EVERY_S
        self._told_s = now_s if is_due else self._told_s
        return is_due


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the fields above and the error, if any."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record; unknown extra attributes are left out on purpose."""
        entry: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        entry.update({name: getattr(record, name) for name in FIELDS if hasattr(record, name)})
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        return orjson.dumps(entry, default=str).decode()


class TextFormatter(logging.Formatter):
    """A short line for a person at a terminal: time, level, message and the fields that are set."""

    def format(self, record: logging.LogRecord) -> str:
        """Render a record on one line, with the traceback below when there is one."""
        fields = " ".join(f"{name}={getattr(record, name)}" for name in FIELDS if hasattr(record, name))
        line = f"{self.formatTime(record, '%H:%M:%S')} {record.levelname.lower():7} {record.getMessage()}"
        line = f"{line}  [{fields}]" if fields else line
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def configure_logging(*, level: str = "INFO", as_json: bool | None = None) -> None:
    """Send all logs to standard error, as JSON unless a person watches (or `as_json` decides)."""
    handler = logging.StreamHandler(sys.stderr)
    json_wanted = not sys.stderr.isatty() if as_json is None else as_json
    handler.setFormatter(JsonFormatter() if json_wanted else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)  # a line for each probe drowns everything else
