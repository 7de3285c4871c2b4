"""Answers GET with JSON, as an API server would: what a program that asks one is tried against."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from typing import Any


def build_json_handler(find: Callable[[str], Mapping[str, Any] | None], missing: Mapping[str, Any]) -> type[BaseHTTPRequestHandler]:
    """Return what answers a path, without its query, with what is found for it, and with 404 and `missing` otherwise."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = find(self.path.partition("?")[0])
            body = json.dumps(answer or missing).encode()
            self.send_response(200 if answer else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            """Say nothing: what matters shows at who asked."""

    return Handler
