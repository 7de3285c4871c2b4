"""Assembles one runtime process: connections, streams, adapters, probes; and ends it in order.

SIGTERM and SIGINT say `leaving`, stop every VM (finish, snapshot), and close the connections. A second signal, of either kind, ends at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from types import FrameType
from typing import Final

from aether_api import logs
from aether_api.errors import JetStreamError, SettingsInvalid
from aether_api.identity import PodUid, PoolName
from aether_nats.connection import NatsConnection
from aether_nats.heads import HeadComparison
from aether_nats.jetstream import JetStream
from aether_nats.jetstream_wire import ERROR_NO_CLUSTER, ERROR_NO_PEERS
from aether_nats.journal import Journal
from aether_nats.schedules import Schedules
from aether_nats.settings import NatsSettings
from aether_nats.streams import StreamLayout, StreamPlan, ensure_streams
from aether_runtime.adapters.folder import FolderSource, LatestReports, check_folder
from aether_runtime.adapters.jetstream_inbox import KeptInbox
from aether_runtime.adapters.jetstream_snapshots import JetStreamSnapshotStore
from aether_runtime.adapters.on_demand import OnDemandSource
from aether_runtime.memory import read_memory
from aether_runtime.passivation import SleepConfig
from aether_runtime.ports import ActorSource, ReportSink
from aether_runtime.runtime import Runtime
from aether_runtime.runtime_config import RuntimeConfig, RuntimePorts
from aether_runtime.settings import RuntimeSettings

logger = logging.getLogger(__name__)

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
"""What ends the process in order, and at once when it comes again."""

COLLECT_AFTER: Final = 50_000
"""Objects more than before at which the collector looks at the young ones: a second of commands instead of a hundredth."""


async def run_process(settings: RuntimeSettings, *, started: Callable[[Runtime], None] = lambda runtime: None) -> None:
    """Run a runtime until SIGTERM, SIGINT or cancellation.

    Args:
        started: called when commands can be sent.

    Raises:
        SettingsInvalid, Disconnected: something it needs is not there; the message says what.
    """
    async with open_runtime(settings) as runtime:
        loop = asyncio.get_running_loop()
        for number in STOP_SIGNALS:
            loop.add_signal_handler(number, _on_signal, loop, runtime)
        logger.info("the runtime is up", extra={logs.POD: settings.pod_name, logs.NAMESPACE: settings.namespace, logs.POOL: settings.pool})
        calm_collector()
        await runtime.run(started=lambda: started(runtime))
        logger.info("the runtime has stopped", extra={logs.POD: settings.pod_name})


@asynccontextmanager
async def open_runtime(settings: RuntimeSettings) -> AsyncGenerator[Runtime]:
    """Connect, make sure of the streams, and yield a runtime that does not run yet.

    A runtime that still runs when the block ends, as after an exception in it, is stopped in order before the connection is closed, within the
    time of its `stop_timeout`.

    Raises:
        SettingsInvalid, Disconnected: as `run_process`.
    """
    if settings.folder is not None and settings.source == "folder":
        check_folder(settings.folder)  # before anybody waits for NATS
    async with AsyncExitStack() as stack:
        connection = await NatsConnection.open(NatsSettings(tuple(settings.nats_url.split(",")), f"aether-runtime {settings.pod_name}", credentials_path=settings.nats_credentials))
        stack.push_async_callback(connection.close)
        layout = await _ensure_streams(connection, settings)
        js = JetStream(connection)
        pod = settings.build_identity()
        source, sink = await _build_adapters(settings, pod.uid, connection, stack)
        sleep = SleepConfig(settings.actors_per_pod, settings.on_demand_idle_s, partial(read_memory, settings.memory_limit_bytes))
        config = RuntimeConfig(
            settings.namespace,
            PoolName(settings.pool),
            pod,
            settings.pod_name,
            settings.recovery_permits,
            settings.status_budget,
            sleep,
            stop_timeout_s=settings.stop_timeout_s,
        )
        runtime = Runtime(config, _build_ports(js, layout, source, sink, batches=settings.sync_always and layout.takes_batches))
        if settings.http_port:
            stack.push_async_callback(await _serve_http(settings.http_port, connection, runtime))
        stack.push_async_callback(runtime.stop_if_running)
        yield runtime


async def _ensure_streams(connection: NatsConnection, settings: RuntimeSettings) -> StreamLayout:
    try:
        return await ensure_streams(connection, settings.namespace, StreamPlan(settings.event_partitions, settings.event_replicas))
    except JetStreamError as exc:
        if exc.error_code not in (ERROR_NO_CLUSTER, ERROR_NO_PEERS):
            raise
        raise SettingsInvalid(
            f"AETHER_EVENT_REPLICAS={settings.event_replicas}: there are too few NATS servers for so many copies of a stream, lower it or add servers ({exc.description})"
        ) from exc


def _build_ports(js: JetStream, layout: StreamLayout, source: ActorSource, sink: ReportSink, *, batches: bool) -> RuntimePorts:
    return RuntimePorts(
        js.connection,
        Journal(js, layout.partitions, batches=batches),
        JetStreamSnapshotStore(js),
        source,
        sink,
        KeptInbox(js, layout.namespace),
        Schedules(js),
        HeadComparison(js, layout.namespace, layout.partitions),
    )


async def _serve_http(port: int, connection: NatsConnection, runtime: Runtime) -> Callable[[], Awaitable[None]]:
    from aether_runtime.exposition import build_registry, build_renderer  # only here: a runtime without HTTP loads neither
    from aether_runtime.probes import serve_probes

    return await serve_probes(port, lambda: connection.is_connected, build_renderer(build_registry(runtime.metrics)))


async def _build_adapters(settings: RuntimeSettings, pod_uid: PodUid, connection: NatsConnection, stack: AsyncExitStack) -> tuple[ActorSource, ReportSink]:
    if settings.source == "folder":
        if settings.folder is None:
            raise SettingsInvalid("AETHER_FOLDER is not set")
        return FolderSource(settings.folder, settings.namespace, pod_uid), LatestReports()
    if settings.source == "none":
        return OnDemandSource(), LatestReports()
    from aether_kube.client import KubeClient  # only here, so that the runtime without Kubernetes does not load its client
    from aether_runtime.adapters.first_reports import ReportingPod
    from aether_runtime.adapters.kubernetes import KubernetesSink, KubernetesSource

    client = await stack.enter_async_context(await KubeClient.open())
    return KubernetesSource(client, settings.namespace, pod_uid), KubernetesSink(client, ReportingPod(connection, settings.namespace, pod_uid).tell)


def calm_collector() -> None:
    """Let Python's collector of cycles look less often, and never at what the imports made: our values form no cycles (measured: a fifth of a command)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *gc.get_threshold()[1:])


def _on_signal(loop: asyncio.AbstractEventLoop, runtime: Runtime) -> None:
    """Stop in order; the next signal of either kind ends the process at once."""
    runtime.request_stop()
    for number in STOP_SIGNALS:
        loop.remove_signal_handler(number)
        signal.signal(number, _end_at_once)


def _end_at_once(number: int, frame: FrameType | None) -> None:
    """Have the signal's usual effect, which the kernel withholds from the first process of a container."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
