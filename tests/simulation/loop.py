"""An event loop whose clock is virtual: when nothing is ready, time jumps to the next timer.

Each task and callback belongs to a process, by a context variable that is set at the root of the process's life and inherited
by everything that it starts. A process that is paused (SIGSTOP, a long pause of its machine) or killed is not run any more:
what it would do next is held back. So a crash may fall between any two steps of a process, and a pause ends with a stale process
that goes on as if nothing had been.

Order is a function of what was scheduled: ready callbacks run first in, first out, timers by time, then first in, first out.
"""

from __future__ import annotations

import asyncio
import heapq
import sys
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

if TYPE_CHECKING:
    from tests.simulation.network import Network

TURNS_AT_ONCE_MAX: Final = 100_000
"""Turns of the loop without time passing: more is a loop that waits for nothing."""

_T = TypeVar("_T")


class State(Enum):
    """How a process is."""

    RUNNING = auto()
    PAUSED = auto()
    DEAD = auto()


@dataclass(eq=False, slots=True)
class Process:
    """A simulated operating system process.

    Attributes:
        skew_s: by how much its wall clock is ahead of the true time.
        held: what it would have done since it was stopped.
        tasks: all tasks that it has started, by their numbers.
    """

    name: str
    skew_s: float = 0.0
    state: State = State.RUNNING
    held: list[asyncio.Handle] = field(default_factory=list[asyncio.Handle])
    tasks: dict[int, SimulatedTask] = field(default_factory=dict)

    def pending(self) -> list[SimulatedTask]:
        """Return its tasks that have not ended."""
        return [task for task in self.tasks.values() if not task.done()]


PROCESS: Final[ContextVar[Process | None]] = ContextVar("process", default=None)
"""Whose work runs now; None for the world around the processes."""


class SimulatedTask(asyncio.Task[Any]):
    """A task that hashes by its number: the order of a set of tasks, by which groups cancel them, is then the same in every run."""

    def __init__(self, number: int, work: Coroutine[Any, Any, Any], loop: VirtualLoop, name: str | None, context: Context | None) -> None:
        self.number = number
        super().__init__(work, loop=loop, name=name or f"task {number}", context=context)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class Hang(AssertionError):
    """Nothing will ever happen again, or too much without any time passing."""


class VirtualLoop(asyncio.AbstractEventLoop):
    """The loop of one simulation; `run` is its whole life.

    Attributes:
        unhandled: what was reported to the loop because nobody else wanted it.
        network: who connects; None where nobody may.
    """

    def __init__(self) -> None:
        self.unhandled: list[str] = []
        self.network: Network | None = None
        self._now_s = 0.0
        self._ready: deque[tuple[Process | None, asyncio.Handle]] = deque()
        self._timers: list[tuple[float, int, Process | None, asyncio.TimerHandle]] = []
        self._count = 0
        self._is_running = False
        self._is_closed = False
        self._is_stopping = False
        self._generators: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()

    # Time and turns.

    def time(self) -> float:
        """Return the virtual monotonic time, in seconds since the run began."""
        return self._now_s

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.Handle:  # type: ignore[override]  # typeshed names them otherwise
        """Run a callback in this or the next turn."""
        context = copy_context() if context is None else context
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append((context.get(PROCESS), handle))
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]  # likewise
        """Run a callback once some time has passed."""
        return self.call_at(self._now_s + max(0.0, delay), callback, *args, context=context)

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None) -> asyncio.TimerHandle:  # type: ignore[override]  # likewise
        """Run a callback at a time."""
        context = copy_context() if context is None else context
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self._count += 1
        heapq.heappush(self._timers, (when, self._count, context.get(PROCESS), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Leave it: it is passed over when its time comes."""

    def run(self, work: Coroutine[Any, Any, _T], *, until_s: float) -> _T:
        """Run to the end of `work`.

        Raises:
            Hang: virtual time would pass `until_s`, or nothing can happen any more.
        """
        hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(firstiter=self._generators.add, finalizer=self._finish_generator)
        asyncio._set_running_loop(self)
        self._is_running = True
        main = self.create_task(work, name="world")
        try:
            turns, at_s = 0, -1.0
            while not main.done():
                turns, at_s = (turns + 1, at_s) if at_s == self._now_s else (0, self._now_s)
                if turns > TURNS_AT_ONCE_MAX:
                    raise Hang(f"at {self._now_s:.3f} s the loop turns without time passing")
                self._turn(until_s)
            return cast("_T", main.result())
        finally:
            self._is_running = False
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _turn(self, until_s: float) -> None:
        if not self._ready:
            self._pass_time(until_s)
        for _ in range(len(self._ready)):
            process, handle = self._ready.popleft()
            if handle.cancelled():
                continue
            if process is not None and process.state is not State.RUNNING:
                process.held.append(handle)
            else:
                handle._run()

    def _pass_time(self, until_s: float) -> None:
        timers = self._timers
        while timers and timers[0][3].cancelled():
            heapq.heappop(timers)
        if not timers or timers[0][0] > until_s:
            raise Hang(f"at {self._now_s:.3f} s " + (f"the run is not over, which it must be at {until_s:.0f} s" if timers else "nothing can happen any more"))
        self._now_s = max(self._now_s, timers[0][0])
        while timers and timers[0][0] <= self._now_s:
            _, _, process, handle = heapq.heappop(timers)
            self._ready.append((process, handle))

    def resume(self, process: Process) -> None:
        """Let a stopped process go on with what it would have done."""
        process.state = State.RUNNING
        held, process.held = process.held, []
        self._ready.extend((process, handle) for handle in held)

    # Tasks and futures.

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future of this loop."""
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, *, name: str | None = None, context: Context | None = None) -> SimulatedTask:
        """Start a task; its process remembers it."""
        self._count += 1
        task = SimulatedTask(self._count, coro, self, name, context)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is not None:
            process.tasks[task.number] = task
        return task

    def get_task_factory(self) -> None:
        """Return None: there is none."""
        return

    def _finish_generator(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self._is_closed:
            self.call_soon(lambda: self.create_task(generator.aclose()))

    # The network.

    async def create_connection(self, protocol_factory: Callable[[], asyncio.Protocol], host: str | None = None, port: int | None = None, **_: Any) -> Any:  # type: ignore[override]  # of its many arguments two are used
        """Connect through the simulated network."""
        assert self.network is not None, "there is no network"
        return await self.network.connect(protocol_factory, f"{host}:{port}")

    # What asyncio expects of a loop.

    def is_running(self) -> bool:
        """Tell whether it runs."""
        return self._is_running

    def is_closed(self) -> bool:
        """Tell whether it has ended."""
        return self._is_closed

    def close(self) -> None:
        """Drop all that was still to come."""
        self._is_closed = True
        self._ready.clear()
        self._timers.clear()

    def get_debug(self) -> bool:
        """Return False: asyncio's debugging looks at the real clock."""
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Keep what nobody handled."""
        self.unhandled.append(f"{context.get('message')}: {context.get('exception')!r} {context.get('task') or context.get('future') or context.get('handle') or ''}")

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Likewise."""
        self.call_exception_handler(context)


@dataclass(frozen=True, slots=True)
class Launch:
    """A process that was started."""

    process: Process
    root: SimulatedTask


def launch(loop: VirtualLoop, process: Process, work: Coroutine[Any, Any, None]) -> Launch:
    """Start the root task of a process: everything that it starts in turn belongs to the process."""
    context = copy_context()
    context.run(PROCESS.set, process)
    return Launch(process, loop.create_task(work, name=f"root of {process.name}", context=context))


def context_of(process: Process) -> Context:
    """Return a context in which callbacks of a process run."""
    context = copy_context()
    context.run(PROCESS.set, process)
    return context
