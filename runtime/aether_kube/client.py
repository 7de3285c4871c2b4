"""One call to the API server at a time, each with a deadline, each failure an error of ours.

Callers build paths with `aether_kube.kinds` and get parsed documents. What this module adds to HTTP: credentials on each
request, a bound on calls under way, errors that say whether to try again, and streams that notice silence. It never tries
a call again by itself (but once after 401), because only the caller knows whether its write is still wanted.

Answers are asked for uncompressed: within a cluster bandwidth is cheap, and gzip costs the API server CPU for every list
over 128 KiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Literal, Self

import aiohttp
import orjson
from yarl import URL

from aether_api.errors import RETRY_SOON_S, KubeUnavailable
from aether_kube.answers import RETRY_S, error_of_answer
from aether_kube.connection import KubeConnection, find_proxy, open_connection
from aether_kube.documents import Document, JsonObject, objects_at, parse_json, text_at

CALL_TIMEOUT_S: Final = 10.0
"""Seconds for one call: over the 8 ms of a write by far, under the API server's own 34 s for a hung admission webhook."""

LIST_TIMEOUT_S: Final = 60.0
"""Seconds for one page of a list: the API server's own limit for a request."""

CONNECT_TIMEOUT_S: Final = 5.0
"""Seconds to connect: a dead node must not eat a whole deadline of calls that could go elsewhere."""

CALLS_AT_ONCE: Final = 64
"""Calls under way: far more than the API server serves in parallel for one client; the rest waits within its deadline."""

PAGE_SIZE: Final = 500
"""Objects in one page of a list: kubectl's own, 1 MB of Actors [5,000 objects paged: 1.3 s]."""

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"
APPLY_PATCH: Final = "application/apply-patch+yaml"
"""Server-side apply; JSON is YAML, so the body is JSON all the same."""

Method = Literal["GET", "POST", "PUT", "PATCH", "DELETE"]
Query = Mapping[str, str]
_NO_QUERY: Final[Query] = {}


@dataclass(frozen=True, slots=True)
class Body:
    """What a call sends: a document (or a list of JSON Patch operations) and how the server shall read it."""

    content: Document | Sequence[Document]
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class StreamLimits:
    """How long a stream may be silent and how long it may live, in seconds."""

    silence_s: float
    total_s: float


class KubeClient:
    """A connection pool to one API server, for use as an async context manager."""

    def __init__(self, connection: KubeConnection, *, before_write: Callable[[], None] | None = None) -> None:
        """Make a client; must run inside an event loop.

        Args:
            before_write: called right before the bytes of each request but GET are sent, when its connection stands; what it raises
                stops the request and reaches the caller.
        """
        self._connection = connection
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        # Unlimited, since each informer holds one connection for its whole life; calls are bounded by the semaphore.
        connector = aiohttp.TCPConnector(limit=0, ssl=connection.ssl_context or True)
        self._proxy = connection.proxy or find_proxy(connection.url)
        self._session = aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar(), trace_configs=_build_traces(before_write))

    @classmethod
    async def open(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """Read the configuration (see `connection`) and return a client; no call is made yet.

        Raises:
            SettingsInvalid: there is no usable configuration.
        """
        return cls(await open_connection(kubeconfig, context))

    @property
    def url(self) -> str:
        """Return where the API server is."""
        return self._connection.url

    async def close(self) -> None:
        """Close all connections; calls under way fail."""
        await self._session.close()

    async def __aenter__(self) -> Self:
        """Return the client itself."""
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        """Close the client."""
        await self.close()

    async def get(self, path: str) -> JsonObject:
        """Read an object.

        Raises:
            KubeNotFound: there is none. All other errors are as in `request`.
        """
        return await self.request("GET", path)

    async def list_page(self, path: str, *, query: Query = _NO_QUERY) -> JsonObject:
        """Read one page of a collection, as the query asks for it."""
        return await self.request("GET", path, query=query, timeout_s=LIST_TIMEOUT_S)

    async def list_all(self, path: str, *, query: Query = _NO_QUERY) -> list[JsonObject]:
        """Read a whole collection, page by page.

        Raises:
            KubeExpired: the pages took so long that the server forgot the first; try again.
        """
        objects: list[JsonObject] = []
        continuation = ""
        while True:
            paging = {"limit": str(PAGE_SIZE)} | ({"continue": continuation} if continuation else {})
            page = await self.list_page(path, query={**query, **paging})
            objects += objects_at(page, "items")
            continuation = text_at(page, "metadata", "continue")
            if not continuation:
                return objects

    async def create(self, path: str, document: Document, *, field_manager: str = "") -> JsonObject:
        """Create an object in the collection of the path.

        Raises:
            KubeAlreadyExists: there is an object of that name.
        """
        return await self.request("POST", path, query=_manager(field_manager), body=Body(document))

    async def replace(self, path: str, document: Document, *, field_manager: str = "") -> JsonObject:
        """Replace an object; with a `resourceVersion` inside, only if it is still that one.

        Raises:
            KubeConflict: the object changed since it was read.
        """
        return await self.request("PUT", path, query=_manager(field_manager), body=Body(document))

    async def delete(self, path: str, *, uid: str = "", grace_period_s: int | None = None) -> None:
        """Delete an object; with a UID, only that very one.

        Raises:
            KubeNotFound: it is gone already.
            KubeConflict: an object of another UID has the name now.
        """
        options: dict[str, object] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        if grace_period_s is not None:
            options["gracePeriodSeconds"] = grace_period_s
        await self.request("DELETE", path, body=Body(options))

    async def patch_merge(self, path: str, document: Document, *, field_manager: str = "") -> JsonObject:
        """Merge a document into an object; None removes a field, lists are replaced as a whole."""
        return await self.request("PATCH", path, query=_manager(field_manager), body=Body(document, MERGE_PATCH))

    async def apply(self, path: str, document: Document, *, field_manager: str, force: bool = True) -> JsonObject:
        """Server-side apply: make the object hold the document, and drop what this manager applied before and no longer does.

        Creates the object where it is missing (not so for a subresource). With `force`, fields of other managers are taken over.

        Raises:
            KubeConflict: without force, another manager owns a field of another value.
        """
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self.request("PATCH", path, query=query, body=Body(document, APPLY_PATCH))

    async def request(self, method: Method, path: str, *, query: Query = _NO_QUERY, body: Body | None = None, timeout_s: float = CALL_TIMEOUT_S) -> JsonObject:
        """Make one call and return the document of its answer.

        The deadline covers waiting for a free slot, connecting and reading. After a time-out or a lost connection a write
        may or may not have happened.

        Raises:
            KubeUnavailable: no answer in time, no connection, 429 or 5xx; try again after `retry_after_s`.
            KubeConflict: 409; read the object anew, decide, try again.
            KubeExpired: 410.
            KubeAlreadyExists, KubeNotFound, KubeForbidden, KubeInvalid: the same call would fail again.
        """
        call = f"{method} {path}"
        data = orjson.dumps(body.content) if body else None
        content_type = body.content_type if body else ""
        try:
            async with asyncio.timeout(timeout_s), self._calls:
                response, payload = await self._exchange(method, self._url(path, query), data, content_type)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise _unavailable(call, exc) from exc
        if response.status >= 300:
            raise error_of_answer(call, response.status, payload, response.headers.get("Retry-After", ""))
        return _read_document(call, payload)

    @asynccontextmanager
    async def open_stream(self, path: str, *, query: Query, limits: StreamLimits) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """Open a watch and yield its bytes as they come, in pieces of any size.

        The iterator ends when the server ends the stream in order, and raises KubeUnavailable when the stream is cut,
        silent for too long or too old.

        Raises:
            KubeExpired, KubeUnavailable and the others: as in `request`.
        """
        call = f"WATCH {path}"
        timeout = aiohttp.ClientTimeout(total=limits.total_s, sock_connect=CONNECT_TIMEOUT_S, sock_read=limits.silence_s)
        try:
            headers = await self._headers("", renew=False)
            response = await self._send("GET", self._url(path, query), headers, None, timeout)
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            raise _unavailable(call, exc) from exc
        try:
            if response.status >= 300:
                raise await _error_of_response(call, response)
            async with aclosing(_chunks(call, response)) as chunks:
                yield chunks
        finally:
            # A watch is cut, never drained: what is left of it may be endless.
            response.close()

    async def _exchange(self, method: Method, url: URL, data: bytes | None, content_type: str) -> tuple[aiohttp.ClientResponse, bytes]:
        """Send and read, a second time with fresh credentials when the first ones were refused (401)."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        for renew in (False, True):
            async with await self._send(method, url, await self._headers(content_type, renew=renew), data, timeout) as response:
                payload = await response.read()
            if response.status != 401:
                break
        return response, payload

    async def _send(self, method: Method, url: URL, headers: dict[str, str], data: bytes | None, timeout: aiohttp.ClientTimeout) -> aiohttp.ClientResponse:
        return await self._session.request(
            method, url, headers=headers, data=data, timeout=timeout, proxy=self._proxy, server_hostname=self._connection.server_name, allow_redirects=False
        )

    async def _headers(self, content_type: str, *, renew: bool) -> dict[str, str]:
        headers = {"Accept": JSON, "Accept-Encoding": "identity", "User-Agent": "aether"}
        if content_type:
            headers["Content-Type"] = content_type
        authorization = await self._connection.authorize(renew)
        if authorization:
            headers["Authorization"] = authorization
        return headers

    def _url(self, path: str, query: Query) -> URL:
        return URL(self._connection.url + path, encoded=True).with_query(dict(query))


def _build_traces(before_write: Callable[[], None] | None) -> list[aiohttp.TraceConfig]:
    """Return what makes aiohttp call back right before a request is sent: a check any earlier would be followed by the wait for a connection."""
    if before_write is None:
        return []
    traces = aiohttp.TraceConfig()

    async def on_headers(session: aiohttp.ClientSession, context: object, sent: aiohttp.TraceRequestHeadersSentParams) -> None:
        if sent.method != "GET":
            before_write()

    traces.on_request_headers_sent.append(on_headers)
    return [traces]


def _manager(field_manager: str) -> Query:
    return {"fieldManager": field_manager} if field_manager else _NO_QUERY


def _unavailable(call: str, exc: BaseException, *, retry_after_s: float = RETRY_S) -> KubeUnavailable:
    what = "no answer in time" if isinstance(exc, TimeoutError) else str(exc) or type(exc).__name__
    return KubeUnavailable(f"{call}: {what}", retry_after_s=retry_after_s)


def _read_document(call: str, payload: bytes) -> JsonObject:
    try:
        document = parse_json(payload)
    except orjson.JSONDecodeError as exc:
        raise KubeUnavailable(f"{call}: the answer is no JSON, so no API server gave it; is a proxy in between?", retry_after_s=RETRY_S) from exc
    return document if isinstance(document, dict) else {}


async def _error_of_response(call: str, response: aiohttp.ClientResponse) -> Exception:
    try:
        payload = await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        return _unavailable(call, exc)
    return error_of_answer(call, response.status, payload, response.headers.get("Retry-After", ""))


async def _chunks(call: str, response: aiohttp.ClientResponse) -> AsyncGenerator[bytes, None]:
    try:
        async for chunk in response.content.iter_any():
            yield chunk
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        # A stream that breaks says nothing of the server's load; most are back at once.
        raise _unavailable(call, exc, retry_after_s=RETRY_SOON_S) from exc
