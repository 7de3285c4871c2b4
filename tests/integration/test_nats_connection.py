"""The contract of `NatsConnection` on a real server, for both layers below it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from nats.aio.client import Client

from aether_api.errors import Backpressure, Disconnected, InvalidName, NoResponders, PayloadTooLarge, PermanentError, PermissionDenied, RequestTimeout
from aether_api.headers import encode_headers
from aether_nats.connection import NatsConnection
from aether_nats.embedded import EmbeddedServer
from aether_nats.event_bus import EventBus
from aether_nats.message import Message
from aether_nats.settings import NatsSettings
from aether_nats.streams import ensure_streams
from tests.integration.links import CutLink

pytestmark = [pytest.mark.asyncio, pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])]

PATIENCE_S = 10.0


@asynccontextmanager
async def connected(server: EmbeddedServer, *, fast: bool, pending_bytes_max: int = 64 << 20) -> AsyncGenerator[NatsConnection, None]:
    connection = await NatsConnection.open(NatsSettings(servers=(server.url,), fast=fast, pending_bytes_max=pending_bytes_max))
    try:
        yield connection
    finally:
        await connection.close()


class Inbox:
    """Collects messages and lets a test wait for their number."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._changed = asyncio.Event()

    def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self._changed.set()

    async def wait_for(self, count: int) -> list[Message]:
        async with asyncio.timeout(PATIENCE_S):
            while len(self.messages) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.messages


async def lose_and_regain(server: EmbeddedServer, connection: NatsConnection) -> None:
    lost = asyncio.Event()
    connection.on_disconnect(lost.set)
    async with asyncio.timeout(PATIENCE_S):
        await server.kill()
        await lost.wait()
        await server.run()
        await connection.wait_connected()


async def test_the_layer_that_was_asked_for_serves(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        assert connection.is_fast is fast
        assert connection.is_connected
        assert connection.max_payload == 8 << 20


async def test_a_message_arrives_with_subject_reply_headers_and_payload(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        inbox = Inbox()
        connection.subscribe("a.*", inbox)
        connection.publish("a.b", b"payload", encode_headers({"Aether-Command": "c-1", "Other": "ä"}), reply="answer.here")
        connection.publish("a.c", b"")
        first, second = await inbox.wait_for(2)
        assert (first.subject, first.reply, first.payload, first.status) == ("a.b", "answer.here", b"payload", 0)
        assert first.headers() == {"Aether-Command": "c-1", "Other": "ä"}
        assert (second.subject, second.reply, second.payload, second.headers()) == ("a.c", "", b"", {})


async def test_messages_of_every_size_arrive_whole_and_in_order(fast: bool) -> None:
    sizes = [0, 1, 100, 32_767, 32_768, 32_769, 65_536, 1 << 20, 7 << 20, 3, 0, 5]
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        inbox = Inbox()
        connection.subscribe("sizes", inbox)
        for number, size in enumerate(sizes):
            connection.publish("sizes", bytes([number]) * size, encode_headers({"N": str(number)}))
        messages = await inbox.wait_for(len(sizes))
        assert [message.payload == bytes([number]) * sizes[number] for number, message in enumerate(messages)] == [True] * len(sizes)
        assert [message.headers()["N"] for message in messages] == [str(number) for number in range(len(sizes))]


async def test_one_member_of_a_queue_group_gets_each_message(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        left, right = Inbox(), Inbox()
        connection.subscribe("work", left, queue="own")
        connection.subscribe("work", right, queue="own")
        for _ in range(50):
            connection.publish("work", b"")
        await connection.flush()
        assert len(left.messages) + len(right.messages) == 50


async def test_requests_in_flight_each_get_their_own_answer(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        connection.subscribe("echo", lambda message: connection.publish(message.reply, message.payload * 2))
        futures = [connection.request("echo", b"%d." % number) for number in range(500)]
        answers = [(await future).payload for future in futures]
        assert answers == [b"%d.%d." % (number, number) for number in range(500)]


async def test_a_request_that_nobody_serves_fails_at_once(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        with pytest.raises(NoResponders, match=r"nobody\.here"):
            await connection.request("nobody.here", b"", timeout_s=PATIENCE_S)


async def test_each_request_fails_at_its_own_deadline(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        connection.subscribe("silent", lambda message: None)
        order: list[str] = []
        slow = connection.request("silent", b"", timeout_s=0.2)
        quick = connection.request("silent", b"", timeout_s=0.05)
        slow.add_done_callback(lambda _: order.append("slow"))
        quick.add_done_callback(lambda _: order.append("quick"))
        for future in (slow, quick):
            with pytest.raises(RequestTimeout):
                await future
        assert order == ["quick", "slow"]


async def test_a_callback_that_raises_costs_only_its_message(fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        inbox = Inbox()

        def fail_on_first(message: Message) -> None:
            inbox(message)
            if len(inbox.messages) == 1:
                raise ValueError("no such luck")

        connection.subscribe("x", fail_on_first)
        connection.publish("x", b"1")
        connection.publish("x", b"2")
        await inbox.wait_for(2)
        await connection.flush()
        assert connection.is_connected
        assert "no such luck" in caplog.text


async def test_unsubscribing_stops_messages_and_draining_keeps_those_on_their_way(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection, connected(server, fast=fast) as sender:
        stopped, drained = Inbox(), Inbox()
        first, second = connection.subscribe("s", stopped), connection.subscribe("s", drained)
        await connection.flush()
        for _ in range(100):
            sender.publish("s", b"")
        await sender.flush()
        await second.drain()
        assert len(drained.messages) == 100
        first.unsubscribe()
        seen = len(stopped.messages)
        await connection.flush()
        sender.publish("s", b"")
        await sender.flush()
        await connection.flush()
        assert (len(stopped.messages), len(drained.messages)) == (seen, 100)


async def test_subscriptions_survive_a_restart_of_the_server(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        kept, ended = Inbox(), Inbox()
        connection.subscribe("kept", kept)
        connection.subscribe("ended", ended).unsubscribe()
        opened = connection.connected_since
        assert opened is not None
        await lose_and_regain(server, connection)
        connection.publish("kept", b"after")
        connection.publish("ended", b"after")
        assert [message.payload for message in await kept.wait_for(1)] == [b"after"]
        await connection.flush()
        assert ended.messages == []
        assert opened < (connection.connected_since or 0) <= time.monotonic()


async def test_a_lost_link_fails_requests_at_once_and_refuses_new_messages(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        connection.subscribe("silent", lambda message: None)
        waiting = connection.request("silent", b"", timeout_s=600)
        await connection.flush()
        async with asyncio.timeout(PATIENCE_S):
            await server.kill()
            with pytest.raises(Disconnected):
                await waiting
        assert connection.connected_since is None
        with pytest.raises(Disconnected):
            connection.publish("a", b"")
        with pytest.raises(Disconnected):
            await connection.request("a", b"")


async def test_a_try_to_reconnect_that_fails_late_leaves_no_task_behind(fast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = [OSError("lost again")]
    flush = Client.flush

    async def flush_late(client: Client, timeout: int = 10) -> None:
        if failures:
            raise failures.pop()
        await flush(client, timeout)

    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        monkeypatch.setattr(Client, "flush", flush_late)
        await lose_and_regain(server, connection)
        await connection.flush()
        pingers = [task for task in asyncio.all_tasks() if "_ping_interval" in repr(task.get_coro())]
        assert (failures, len(pingers)) == ([], 1)


async def test_a_subscription_made_while_the_link_is_down_works_after_it(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        lost, inbox = asyncio.Event(), Inbox()
        connection.on_disconnect(lost.set)
        async with asyncio.timeout(PATIENCE_S):
            await server.kill()
            await lost.wait()
            connection.subscribe("late", inbox)
            await server.run()
            await connection.wait_connected()
        await connection.flush()
        connection.publish("late", b"")
        await inbox.wait_for(1)


async def test_listeners_hear_of_loss_and_return_even_if_one_raises(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        heard: list[str] = []

        def fail() -> None:
            raise ValueError

        connection.on_disconnect(fail)
        connection.on_disconnect(lambda: heard.append("down"))
        connection.on_reconnect(fail)
        connection.on_reconnect(lambda: heard.append("up"))
        await lose_and_regain(server, connection)
        assert heard == ["down", "up"]


async def test_more_bytes_than_the_limit_are_refused_and_those_before_arrive(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast, pending_bytes_max=3 << 20) as connection:
        inbox = Inbox()
        connection.subscribe("much", inbox)
        sent = 0
        with pytest.raises(Backpressure):
            for _ in range(100):
                connection.publish("much", bytes(1 << 20))
                sent += 1
        assert sent >= 2
        await inbox.wait_for(sent)


async def test_what_the_server_just_takes_is_sent(fast: bool) -> None:
    """Header lines count with the frame around them, and a message without headers has no frame."""
    lines = encode_headers({"Name": "value"})
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        inbox = Inbox()
        connection.subscribe("big", inbox)
        connection.publish("big", bytes(8 << 20))
        await inbox.wait_for(1)
        connection.publish("big", bytes((8 << 20) - len(lines) - len(b"NATS/1.0\r\n\r\n")), lines)
        await inbox.wait_for(2)


async def test_what_the_server_would_refuse_is_not_sent(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:
        with pytest.raises(PayloadTooLarge):
            connection.publish("big", bytes((8 << 20) + 1))
        with pytest.raises(PayloadTooLarge):
            connection.publish("big", bytes((8 << 20) - 20), encode_headers({"Name": "value"}))
        for subject in ("", "a b", "a\r\nPING", "a\tb"):
            with pytest.raises(InvalidName):
                connection.publish(subject, b"")
        await connection.flush()


async def test_an_unreachable_server_is_named_in_the_error(fast: bool) -> None:
    settings = NatsSettings(servers=("nats://someone:secret@127.0.0.1:1",), connect_timeout_s=0.5, fast=fast)
    with pytest.raises(Disconnected, match=r"nats://127\.0\.0\.1:1 ") as caught:
        await NatsConnection.open(settings)
    assert "secret" not in str(caught.value)


async def test_a_server_without_tls_is_refused_where_tls_is_demanded(fast: bool) -> None:
    async with EmbeddedServer.start() as server:
        settings = NatsSettings(servers=(server.url.replace("nats://", "tls://"),), user="u", password="p", connect_timeout_s=1.5, fast=fast)
        with pytest.raises(Disconnected, match="TLS is demanded"):
            await NatsConnection.open(settings)


async def test_users_and_passwords_are_checked_by_the_server(fast: bool) -> None:
    users = "authorization { user: runtime, password: right }"
    async with EmbeddedServer.start(extra_config=users) as server:
        connection = await NatsConnection.open(NatsSettings(servers=(server.url,), user="runtime", password="right", fast=fast))
        await connection.flush()
        await connection.close()
        with pytest.raises(Disconnected, match=r"(?i)authorization violation"):
            await NatsConnection.open(NatsSettings(servers=(server.url,), user="runtime", password="wrong", connect_timeout_s=1.5, fast=fast))


@pytest.mark.parametrize(
    ("login", "who"),
    [(NatsSettings(user="runtime", password="wrong"), "as user runtime with a password"), (NatsSettings(), "without a user"), (NatsSettings(token="t"), "with a token")],
)
async def test_who_is_refused_hears_so_after_few_tries_and_what_to_check(fast: bool, login: NatsSettings, who: str) -> None:
    async with EmbeddedServer.start(extra_config="authorization { user: runtime, password: right }") as server, asyncio.timeout(PATIENCE_S):
        with pytest.raises(Disconnected, match=f"was reached, and refused us, who came {who} .*Violation.*: check user, password") as caught:
            await NatsConnection.open(replace(login, servers=(server.url,), connect_timeout_s=600, fast=fast))
        assert "wrong" not in str(caught.value)


async def test_a_missing_permission_is_logged_and_the_link_stays_up(fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    users = 'authorization { users: [{user: u, password: p, permissions: {publish: ["ok", "_INBOX.>"], subscribe: ">"}}] }'
    async with EmbeddedServer.start(extra_config=users) as server:
        connection = await NatsConnection.open(NatsSettings(servers=(server.url,), user="u", password="p", fast=fast))
        connection.publish("denied", b"")
        await connection.flush()
        assert connection.is_connected
        assert 'publish to "denied"' in caplog.text
        await connection.close()


DENYING = """authorization { users: [
  {user: u, password: p, permissions: {publish: {deny: ["secret.>"]}, subscribe: {deny: ["private.>"]}}}
  {user: mute, password: p, permissions: {publish: {deny: ["_INBOX.>"]}}}
  {user: deaf, password: p, permissions: {subscribe: {deny: ["_INBOX.>"]}}}
] }"""


@asynccontextmanager
async def denied(user: str, *, fast: bool) -> AsyncGenerator[NatsConnection]:
    """Connect as a user who may not do something."""
    async with EmbeddedServer.start(extra_config=DENYING) as server:
        connection = await NatsConnection.open(NatsSettings(servers=(server.url,), user=user, password="p", fast=fast))
        try:
            yield connection
        finally:
            await connection.close()


async def test_a_request_that_the_server_drops_fails_at_once_and_names_the_permission(fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with denied("u", fast=fast) as connection, asyncio.timeout(PATIENCE_S):
        connection.subscribe("echo", lambda message: connection.respond(message.raw_reply, message.payload))
        allowed = connection.request("echo", b"1", timeout_s=600)
        for refused in (
            connection.request("secret.door", b"", timeout_s=600),
            connection.request_many("secret.door", b"", timeout_s=600),
            connection.request_each("secret.door", [b"", b""], timeout_s=600),
        ):
            with pytest.raises(PermissionDenied, match=r'publish to "secret\.door"') as caught:
                await refused
            assert (caught.value.subject, caught.value.action) == ("secret.door", "publish")
        assert (await allowed).payload == b"1"
        assert 'does not let this user publish to "secret.door"' in caplog.text


async def test_nobody_is_answered_on_a_subject_that_he_may_not_publish_to_himself(nats_server: EmbeddedServer, fast: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(nats_server, fast=fast) as connection:
        heard, asked = Inbox(), Inbox()

        def echo(message: Message) -> None:
            connection.respond(message.raw_reply, message.payload)
            asked(message)

        connection.subscribe("aether.>", heard)
        connection.subscribe("$test.>", heard)
        connection.subscribe("echo", echo)
        for reply in ("aether.default.evt.0.account.alice", "$test.door", "aether.default.assign.default.pod"):
            connection.publish("echo", b"forged", reply=reply)
        await asked.wait_for(3)
        assert (await connection.request("echo", b"1", timeout_s=PATIENCE_S)).payload == b"1"
        assert heard.messages == []
        assert sum("gets none" in record.getMessage() for record in caplog.records) == 1, "many of them must not fill the log"


async def test_a_subscription_that_is_denied_knows_it_after_a_flush(fast: bool) -> None:
    async with denied("u", fast=fast) as connection:
        subscriptions = [connection.subscribe(subject, lambda message: None) for subject in ("private.door", "public.door")]
        await connection.flush()
        assert [subscription.denied is not None for subscription in subscriptions] == [True, False]


async def test_who_may_not_write_to_itself_is_told_by_its_flush(fast: bool) -> None:
    async with denied("mute", fast=fast) as connection, asyncio.timeout(PATIENCE_S):
        with pytest.raises(PermissionDenied, match=r'publish to "_INBOX\.>"'):
            await connection.flush(timeout_s=600)


async def test_who_may_not_hear_answers_is_told_with_the_first_question(fast: bool) -> None:
    async with denied("deaf", fast=fast) as connection, asyncio.timeout(PATIENCE_S):
        for _ in range(2):
            with pytest.raises(PermissionDenied, match=r'subscribe to "_INBOX\.>", so no answer can reach it'):
                await connection.request("anything", b"", timeout_s=600)


async def test_another_event_loop_is_refused_with_a_sentence(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as connection:

        async def use_elsewhere() -> None:
            for use in (connection.flush, lambda: ensure_streams(connection, "shop"), EventBus(connection).subscribe_to_event_stored("shop").__aenter__):
                with pytest.raises(PermanentError, match="opened in another event loop"):
                    await use()

        await asyncio.to_thread(asyncio.run, use_elsewhere())
        await connection.flush()


async def test_closing_ends_requests_and_may_be_repeated(fast: bool) -> None:
    async with EmbeddedServer.start() as server:
        connection = await NatsConnection.open(NatsSettings(servers=(server.url,), fast=fast))
        connection.subscribe("silent", lambda message: None)
        waiting = connection.request("silent", b"", timeout_s=600)
        await connection.close()
        await connection.close()
        with pytest.raises(Disconnected):
            await waiting
        with pytest.raises(Disconnected, match="closed"):
            connection.publish("a", b"")
        assert connection.is_closed


async def test_closing_just_when_the_link_is_lost_is_no_cancellation(fast: bool) -> None:
    """Nobody has cancelled the caller: nats-py has its own try to reconnect, which waits for the same socket."""
    async with EmbeddedServer.start() as server:
        for turns in range(12):
            async with CutLink.to(server.port) as link:
                connection = await NatsConnection.open(NatsSettings(servers=(link.url,), fast=fast))
                await connection.flush()
                lost = asyncio.Event()
                connection.on_disconnect(lost.set)
                await link.cut()
                async with asyncio.timeout(10):
                    await lost.wait()
                for _ in range(turns):
                    await asyncio.sleep(0)
                await connection.close()
                assert connection.is_closed


async def test_what_was_published_before_closing_is_delivered(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as reader:
        inbox = Inbox()
        reader.subscribe("last", inbox)
        await reader.flush()
        writer = await NatsConnection.open(NatsSettings(servers=(server.url,), fast=fast))
        for _ in range(1000):
            writer.publish("last", b"x")
        await writer.close()
        await inbox.wait_for(1000)


async def test_draining_answers_what_was_already_asked(fast: bool) -> None:
    async with EmbeddedServer.start() as server, connected(server, fast=fast) as client:
        service = await NatsConnection.open(NatsSettings(servers=(server.url,), fast=fast))
        service.subscribe("ask", lambda message: service.publish(message.reply, b"answer"))
        await service.flush()
        futures = [client.request("ask", b"") for _ in range(200)]
        await client.flush()
        await service.drain()
        assert {(await future).payload for future in futures} == {b"answer"}
