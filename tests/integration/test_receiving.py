"""What a connection makes of bytes that come at odd moments: with the handshake, or when the link was given up already."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from nats import errors
from nats.aio.client import Client

from aether_nats.connection import NatsConnection
from aether_nats.settings import NatsSettings
from tests.histories.cluster import until

pytestmark = pytest.mark.asyncio


class Script:
    """A server that shakes hands and then says what a test tells it to."""

    def __init__(self, with_pong: bytes) -> None:
        self.links: list[asyncio.StreamWriter] = []
        self._with_pong = with_pong

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer pings of one client; only the first gets what is to come with the handshake."""
        self.links.append(writer)
        behind, self._with_pong = self._with_pong, b""
        writer.write(b"INFO %b\r\n" % json.dumps({"server_id": "x", "version": "2.15.1", "proto": 1, "headers": True, "max_payload": 1 << 20}).encode())
        try:
            while line := await reader.readline():
                if line.startswith(b"PING"):
                    writer.write(b"PONG\r\n" + behind)
                    behind = b""
                elif line.startswith(b"PUB"):
                    await reader.readexactly(int(line.split()[-1]) + 2)
        finally:
            writer.close()


@asynccontextmanager
async def scripted(with_pong: bytes = b"") -> AsyncGenerator[tuple[Script, NatsConnection, Client]]:
    """A connection to a script."""
    script = Script(with_pong)
    server = await asyncio.start_server(script.serve, "127.0.0.1", 0)
    connection = await NatsConnection.open(NatsSettings((f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}",), "test"))
    client: Client = vars(connection)["_link"].client
    try:
        yield script, connection, client
    finally:
        await connection.close(0.2)
        server.close()


def build_info(**fields: Any) -> bytes:
    return b"INFO %b\r\n" % json.dumps({"server_id": "x", "version": "2.15.1", **fields}).encode()


async def test_servers_that_are_named_with_the_handshake_are_known() -> None:
    async with scripted(build_info(connect_urls=["127.0.0.1:1", "127.0.0.1:2"])) as (_, _, client):
        await until(lambda: len(client.servers) == 3)


@pytest.mark.parametrize("with_pong", [b"-ERR 'Something Wrong'\r\n", build_info(connect_urls=["[::1"]), b"HELLO\r\n"])
async def test_an_error_that_comes_with_the_handshake_makes_the_link_anew(with_pong: bytes) -> None:
    async with scripted(with_pong) as (script, connection, _):
        await until(lambda: len(script.links) == 2 and connection.is_connected)


@pytest.mark.parametrize("text", [b"-ERR 'Something Wrong'\r\n", build_info(connect_urls=["[::1"]), b"HELLO\r\n"])
async def test_an_error_that_comes_later_makes_the_link_anew(text: bytes) -> None:
    async with scripted() as (script, connection, _):
        script.links[0].write(text)
        await until(lambda: len(script.links) == 2 and connection.is_connected)


async def test_the_rest_of_a_message_is_never_taken_for_another_one_when_the_link_was_given_up() -> None:
    payload = b"x" * 1000 + b"MSG secret 2 6\r\nforged\r\nMSG big 1 100000\r\n"
    got: list[tuple[str, bytes]] = []
    async with scripted() as (script, connection, client):
        subscriptions = [connection.subscribe(subject, lambda message: got.append((message.subject, message.payload))) for subject in ("big", "secret")]
        sids = {subscription.subject: subscription.sid for subscription in subscriptions}
        payload = payload.replace(b"secret 2", b"secret %d" % sids["secret"]).replace(b"big 1", b"big %d" % sids["big"])
        script.links[0].write(b"MSG big %d %d\r\n" % (sids["big"], len(payload)) + payload[:1000])
        await asyncio.sleep(0.05)
        await client._process_op_err(errors.StaleConnectionError())  # pyright: ignore[reportPrivateUsage]  # what nats-py does when pings are not answered
        vars(client)["_receiver"].data_received(payload[1000:])  # as a loop may that looks at the socket before it goes on
        await until(lambda: len(script.links) == 2 and connection.is_connected)
        script.links[1].write(b"MSG secret %d 2\r\nok\r\n" % sids["secret"])
        await until(lambda: bool(got))
        assert got == [("secret", b"ok")]
