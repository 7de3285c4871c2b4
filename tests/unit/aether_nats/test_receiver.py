"""Bytes go to the parser from the moment that the handshake is over, those that came before it included."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from urllib.parse import urlparse

import pytest
from nats.aio.transport import TcpTransport
from nats.errors import ProtocolError, UnexpectedEOF

from aether_nats.parser import FastParser
from aether_nats.receiver import NEWS_MAX, Receiver
from tests.unit.aether_nats.test_parser import Recorder

DEADLINE_S = 5.0


class Stage:
    """A client and the server's end of its socket."""

    def __init__(self, client: TcpTransport, server: asyncio.StreamWriter) -> None:
        self.client = client
        self.server = server
        self.messages: asyncio.Queue[bytes] = asyncio.Queue()
        self.parser = FastParser(Recorder(), {b"1": lambda subject, reply, raw, payload: self.messages.put_nowait(payload)})

    def take_over(self) -> Receiver:
        receiver = Receiver(self.parser)
        receiver.take_over(self.client)
        return receiver

    async def next_message(self) -> bytes:
        async with asyncio.timeout(DEADLINE_S):
            return await self.messages.get()

    async def until_held(self) -> None:
        """Wait for bytes that nobody reads yet."""
        async with asyncio.timeout(DEADLINE_S):
            while not vars(self.client._io_reader)["_buffer"]:  # pyright: ignore[reportPrivateUsage]
                await asyncio.sleep(0.001)


@asynccontextmanager
async def connected() -> AsyncGenerator[Stage, None]:
    ends: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
    server = await asyncio.start_server(lambda reader, writer: ends.put_nowait(writer), "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    client = TcpTransport()
    await client.connect(urlparse(f"nats://127.0.0.1:{port}"), 32_768, 5)
    end = await ends.get()
    try:
        yield Stage(client, end)
    finally:
        client.close()
        end.close()
        server.close()


async def read_error(receiver: Receiver) -> Exception:
    async with asyncio.timeout(DEADLINE_S):
        while not isinstance(news := await receiver.news.get(), Exception):
            pass
    return news


async def test_what_came_with_the_handshake_is_parsed_first() -> None:
    async with connected() as stage:
        stage.server.write(b"MSG a 1 5\r\nfirst\r\nMSG a 1 6\r\nsec")
        await stage.until_held()
        stage.take_over()
        assert await stage.next_message() == b"first"
        stage.server.write(b"ond\r\nMSG a 1 5\r\nthird\r\n")
        assert [await stage.next_message(), await stage.next_message()] == [b"second", b"third"]


@pytest.mark.parametrize("is_early", [True, False])
async def test_the_end_of_the_socket_is_told_after_its_last_message(is_early: bool) -> None:
    async with connected() as stage:
        receiver = None if is_early else stage.take_over()
        stage.server.write(b"MSG a 1 4\r\nlast\r\n")
        stage.server.write_eof()
        if receiver is None:
            await stage.until_held()
            await asyncio.sleep(0.01)
            receiver = stage.take_over()
        assert isinstance(await read_error(receiver), UnexpectedEOF)
        assert stage.messages.get_nowait() == b"last"


async def test_a_lost_socket_is_told_to_the_writer_too() -> None:
    async with connected() as stage:
        receiver = stage.take_over()
        stage.server.transport.abort()
        assert isinstance(await read_error(receiver), (OSError, UnexpectedEOF))
        async with asyncio.timeout(DEADLINE_S):
            stage.client.close()
            await stage.client.wait_closed()


async def test_what_is_not_the_protocol_ends_it_and_nothing_more_is_taken() -> None:
    async with connected() as stage:
        receiver = stage.take_over()
        stage.server.write(b"HELLO\r\n")
        assert isinstance(await read_error(receiver), ProtocolError)
        receiver.data_received(b"MSG a 1 4\r\nlate\r\n")
        assert stage.messages.empty()


async def test_a_writer_waits_for_a_socket_that_is_full_and_goes_on_when_it_has_room() -> None:
    async with connected() as stage:
        stage.take_over()
        stage.client.write(bytes(32 << 20))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await stage.client.drain()
        stage.server.transport.abort()
        with pytest.raises((OSError, ConnectionError)):
            async with asyncio.timeout(DEADLINE_S):
                await stage.client.drain()


async def test_news_are_bounded_and_the_end_is_never_lost() -> None:
    async with connected() as stage:
        receiver = stage.take_over()
        for number in range(NEWS_MAX + 1):
            receiver.tell({"number": number})
        receiver.end(UnexpectedEOF())
        told = [receiver.news.get_nowait() for _ in range(NEWS_MAX)]
        assert told[0] == {"number": 2}
        assert told[-2] == {"number": NEWS_MAX}
        assert isinstance(told[-1], UnexpectedEOF)
