"""The HTTP side of the fake API server: calls, lists in pages, watches, and the faults that tests ask for.

Watches are served from the history, so a test that writes while no watch is open loses nothing, unless it wrote silently.
Every wait in here is for a condition, never for time.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Self

import orjson
from aiohttp import web

from aether_kube.documents import JsonObject, JsonValue, parse_json, text_at
from tests.fake_apiserver.collection import Documents, merge


@dataclass(frozen=True, slots=True)
class Fault:
    """An answer to give instead of the right one, a number of times.

    Attributes:
        matches: chooses the requests that meet the fault.
        status: the answer's code; 0 cuts the connection without an answer.
        body: the answer itself; by default a Status.
    """

    matches: Callable[[web.Request], bool]
    status: int
    times: int = 1
    body: bytes | None = None
    headers: dict[str, str] = field(default_factory=dict[str, str])


@dataclass(slots=True)
class _Watch:
    """An open watch: its way out, and how many entries of raw bytes it has sent."""

    request: web.Request
    position: int
    sent_raw: int
    ended: str = ""


class FakeApiServer:
    """Serves on a free local port, as an async context manager.

    Attributes:
        silent: watches stay open and bring nothing.
        holds: chooses the requests that get no answer for as long as it does so; they are carried out when it lets go.
    """

    def __init__(self) -> None:
        """Make a server with nothing in it."""
        self.documents = Documents()
        self.requests: list[web.Request] = []
        self.faults: list[Fault] = []
        self.open_watches = 0
        self.silent = False
        self.holds: Callable[[web.Request], bool] = lambda _: False
        self._watches: list[_Watch] = []
        self._raw: list[bytes] = []
        self._lists: dict[tuple[str, int], list[JsonObject]] = {}
        self._moved = asyncio.Condition()
        self._runner: web.AppRunner | None = None
        self._port = 0

    @property
    def url(self) -> str:
        """Return where it listens."""
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        """Start to serve."""
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop and cut all connections."""
        await self.stop()

    async def start(self) -> None:
        """Serve, on the same port as before after a `stop`."""
        application = web.Application(client_max_size=64 * 1024 * 1024)
        application.router.add_route("*", "/{path:.*}", self._serve)
        self._runner = web.AppRunner(application, shutdown_timeout=0.01)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True)
        await site.start()
        self._port = int(site.name.rpartition(":")[2])

    async def stop(self) -> None:
        """Go away, as an API server does that is restarted; the documents stay."""
        await self.end_watches("cut")
        if self._runner:
            await self._runner.cleanup()

    async def put(self, path: str, document: JsonObject, *, silently: bool = False) -> JsonObject:
        """Create or replace an object and tell the watches, unless silently."""
        stored = self.documents.put(path, document, silently=silently)
        await self._tell()
        return stored

    async def remove(self, path: str, *, silently: bool = False) -> None:
        """Delete an object and tell the watches, unless silently."""
        self.documents.remove(path, silently=silently)
        await self._tell()

    async def send_raw(self, line: bytes) -> None:
        """Send bytes to every open watch, whatever they are."""
        self._raw.append(line)
        await self._tell()

    async def send_event(self, kind: str, document: JsonObject) -> None:
        """Send a watch event to every open watch, true or not."""
        await self.send_raw(orjson.dumps({"type": kind, "object": document}) + b"\n")

    async def send_bookmark(self) -> None:
        """Tell every open watch the current resourceVersion."""
        await self.send_event("BOOKMARK", {"metadata": {"resourceVersion": str(self.documents.resource_version)}})

    async def let_go(self) -> None:
        """Carry out and answer what was held."""
        self.holds = lambda _: False
        await self._tell()

    async def end_watches(self, how: str = "end") -> None:
        """End every open watch: in order (`end`), or cut in the middle (`cut`)."""
        for watch in self._watches:
            watch.ended = how
        await self._tell()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until a condition over this server holds; looked at after each request and change."""
        async with self._moved:
            await self._moved.wait_for(condition)

    async def _tell(self) -> None:
        async with self._moved:
            self._moved.notify_all()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        await self._tell()
        await self.until(lambda: not self.holds(request))
        fault = self._take_fault(request)
        if fault is not None:
            return _faulty(request, fault)
        if request.method == "GET" and request.query.get("watch"):
            return await self._serve_watch(request)
        if request.method == "GET" and request.path not in self.documents.objects and ("limit" in request.query or self.documents.under(request.path)):
            return self._serve_list(request)
        return await self._serve_call(request)

    def _take_fault(self, request: web.Request) -> Fault | None:
        for index, fault in enumerate(self.faults):
            if fault.matches(request):
                left = fault.times - 1
                self.faults[index : index + 1] = [Fault(fault.matches, fault.status, left, fault.body, fault.headers)] if left else []
                return fault
        return None

    def _serve_list(self, request: web.Request) -> web.Response:
        """Serve a page. All pages of a list show the moment of the first one, until that is forgotten, as etcd's revisions do."""
        listed, start, version = [*self.documents.under(request.path).values()], 0, self.documents.resource_version
        if "continue" in request.query:
            start, version = (int(part) for part in request.query["continue"].split("-"))
            if version < self.documents.forgotten or (request.path, version) not in self._lists:
                return refusal(410, "Expired", "the provided continue parameter is too old")
            listed = self._lists[request.path, version]
        end = start + int(request.query.get("limit", len(listed)))
        more = end < len(listed)
        if more:
            self._lists[request.path, version] = listed
        metadata: JsonObject = {"resourceVersion": str(version), "continue": f"{end}-{version}" if more else ""}
        return _answer(200, {"kind": "List", "metadata": metadata, "items": [*listed[start:end]]})

    async def _serve_call(self, request: web.Request) -> web.Response:
        body: JsonValue = parse_json(payload) if (payload := await request.read()) else None
        answer = self._carry_out(request, body)
        await self._tell()
        return answer

    def _carry_out(self, request: web.Request, body: JsonValue) -> web.Response:
        documents, path = self.documents, request.path
        known = documents.objects.get(path.removesuffix("/status") if request.method == "PATCH" else path)
        if request.method == "POST" and isinstance(body, dict):
            path = f"{path}/{text_at(body, 'metadata', 'name')}"
            return refusal(409, "AlreadyExists", f"{path} exists") if path in documents.objects else _answer(201, documents.put(path, body))
        if request.method == "PATCH" and request.content_type.endswith("apply-patch+yaml"):
            return self._merge(path, body)
        if known is None:
            return refusal(404, "NotFound", f"{path} not found")
        if request.method == "DELETE":
            wanted = text_at(body, "preconditions", "uid")
            stale = wanted not in ("", text_at(known, "metadata", "uid"))
            return refusal(409, "Conflict", "the UID in the precondition does not match") if stale else _answer(200, documents.remove(path))
        if request.method == "PUT" and isinstance(body, dict):
            stale = text_at(body, "metadata", "resourceVersion") not in ("", text_at(known, "metadata", "resourceVersion"))
            return refusal(409, "Conflict", "the object has been modified") if stale else _answer(200, documents.put(path, body))
        if request.method == "PATCH" and request.content_type.endswith("/merge-patch+json"):
            return self._merge(path, body)
        return _answer(200, known) if request.method == "GET" else refusal(405, "MethodNotAllowed", f"the fake cannot {request.method} {request.content_type}")

    def _merge(self, path: str, body: JsonValue) -> web.Response:
        target = path.removesuffix("/status")
        known = self.documents.objects.get(target)
        if text_at(body, "metadata", "resourceVersion") not in ("", text_at(known, "metadata", "resourceVersion")):
            return refusal(409, "Conflict", "the object has been modified")
        merged = merge(known, body)
        assert isinstance(merged, dict), "a patch is an object"
        return _answer(200, self.documents.put(target, merged))

    async def _serve_watch(self, request: web.Request) -> web.StreamResponse:
        position = int(request.query["resourceVersion"])
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        if position < self.documents.forgotten:
            expired: JsonObject = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            await response.write(orjson.dumps({"type": "ERROR", "object": expired}) + b"\n")
            return response
        watch = _Watch(request, position, len(self._raw))
        self._watches.append(watch)
        self.open_watches += 1
        await self._tell()
        try:
            await self._feed(watch, response)
        finally:
            self.open_watches -= 1
            self._watches.remove(watch)
        return response

    async def _feed(self, watch: _Watch, response: web.StreamResponse) -> None:
        while not watch.ended:
            await self._send_new(watch, response)
            async with self._moved:
                await self._moved.wait_for(lambda: bool(watch.ended or self._has_new(watch)))
        if watch.ended == "end":
            await self._send_new(watch, response)
        elif watch.request.transport:
            watch.request.transport.abort()

    def _has_new(self, watch: _Watch) -> bool:
        return not self.silent and (watch.sent_raw < len(self._raw) or bool(self.documents.since(watch.request.path, watch.position)))

    async def _send_new(self, watch: _Watch, response: web.StreamResponse) -> None:
        if self.silent:
            return
        for entry in self.documents.since(watch.request.path, watch.position):
            watch.position = entry.resource_version
            await response.write(orjson.dumps({"type": entry.kind, "object": entry.document}) + b"\n")
        for line in self._raw[watch.sent_raw :]:
            watch.sent_raw += 1
            await response.write(line)


def refusal(code: int, reason: str, message: str) -> web.Response:
    """Return a refusal as the API server words it."""
    return _answer(code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": message})


def _answer(code: int, document: JsonObject) -> web.Response:
    return web.Response(status=code, body=orjson.dumps(document), content_type="application/json")


def _faulty(request: web.Request, fault: Fault) -> web.Response:
    if fault.status == 0 and request.transport:
        request.transport.abort()
    if fault.body is not None:
        return web.Response(status=fault.status or 500, body=fault.body, headers=fault.headers)
    answer = refusal(fault.status or 500, "Fault", "a fault that the test asked for")
    answer.headers.update(fault.headers)
    return answer
