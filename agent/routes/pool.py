"""Worker processes, and the queue of requests that wait for one."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog

from agent.config import Local
from agent.job import ErrorCode, JobError, Load, Tensor
from agent.routes import messages
from agent.routes.messages import Arena, Done, Failed, ModelSpec, Reply, Request
from agent.routes.process import WorkerDiedError, WorkerProcess
from agent.routes.queue import Waits

log = structlog.get_logger(__name__)

# A request whose worker dies under it is given one more, and no third.
MAX_RUNS = 2
LOAD_TIMEOUT_S = 60.0
RESPAWN_BACKOFF_S = (0.0, 0.1, 0.5, 2.0, 10.0)
# While its runs are this short, a worker is sent requests ahead: waking it for each costs more
# than running a small model. Behind longer runs a request waits here, where others can overtake it.
SHORT_RUN_S = 0.005

# Puts a request's data into shared memory, and gives the request for the slot of this number.
Placement = Callable[[Arena, int], Request]


@dataclass(frozen=True, slots=True)
class Result:
    """A worker's reply, with its tensors copied out of shared memory."""

    outputs: tuple[Tensor, ...]
    run_s: float
    cpu_s: float


@dataclass(order=True, slots=True)
class _Waiting:
    """A request in the queue: higher priority first, then the earlier deadline, then arrival."""

    priority: int  # negated
    deadline_at: float
    number: int
    model: str = field(compare=False)
    place: Placement = field(compare=False)
    result: asyncio.Future[Result] = field(compare=False)
    started: Callable[[], None] = field(compare=False)
    began: float | None = field(default=None, compare=False)  # event loop's time


class WorkerPool:
    """Gives each request, in its turn, to a worker that is free, and replaces workers that fail."""

    def __init__(self, settings: Local, on_restart: Callable[[], None]) -> None:
        """Set up a pool without workers.

        Args:
            settings: How many workers, and their limits.
            on_restart: Called each time a worker has to be started again.
        """
        self._settings = settings
        self._on_restart = on_restart
        self._models: Sequence[ModelSpec] = ()
        self._queue: asyncio.PriorityQueue[_Waiting] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._workers: list[WorkerProcess] = []
        self._reviving: dict[WorkerProcess, asyncio.Lock] = {}
        self._dispatchers: list[asyncio.Task[None]] = []
        self._runs: set[asyncio.Task[None]] = set()
        self._waits = Waits()  # not yet begun
        self._begun: dict[int, _Waiting] = {}  # by number
        # Always the same: what rests on it need not be reckoned anew.
        self._idle = Load(parallel=settings.workers)

    @property
    def waiting(self) -> int:
        """Requests not yet begun."""
        return len(self._waits)

    @property
    def running(self) -> int:
        """Requests that a worker has begun."""
        return len(self._begun)

    def load(self, priority: int) -> Load:
        """Tell what a request of this priority would find before it."""
        if not self._waits and not self._begun:
            return self._idle
        now = asyncio.get_running_loop().time() if self._begun else 0.0
        running = tuple((run.model, now - (run.began or now)) for run in self._begun.values())
        return Load(self._waits.ahead_of(priority), running, self._settings.workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    def boot(self) -> None:
        """Start the processes; they import what they need while we go on."""
        for _ in range(self._settings.workers):
            worker = WorkerProcess(self._settings.memory_mb)
            worker.start()
            self._workers.append(worker)
            self._reviving[worker] = asyncio.Lock()

    async def open(self, models: Sequence[ModelSpec]) -> None:
        """Load these models into each worker, and begin to serve."""
        self._models = models
        await asyncio.gather(*(self._revive(worker, died=0) for worker in self._workers))
        self._dispatchers = [
            asyncio.create_task(self._dispatch(worker)) for worker in self._workers
        ]

    async def stop(self) -> None:
        """Stop serving and kill the workers."""
        tasks = [*self._dispatchers, *self._runs]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    async def ask(
        self,
        place: Placement,
        *,
        model: str,
        priority: int,
        deadline_at: float,
        timeout_s: float,
        started: Callable[[], None],
    ) -> Result:
        """Have a request carried out by a worker.

        Args:
            place: Puts the request's data into shared memory.
            model: The model that it is for.
            priority: Higher first.
            deadline_at: Among equals, the earlier first.
            timeout_s: How long to wait for the result.
            started: Called when a worker begins.

        Raises:
            JobError: The worker says why it failed, died or hung, or there was no result in time.
        """
        waiting = _Waiting(
            -priority,
            deadline_at,
            next(self._numbers),
            model,
            place,
            asyncio.get_running_loop().create_future(),
            started,
        )
        self._waits.add(priority, model)
        self._queue.put_nowait(waiting)
        try:
            async with asyncio.timeout(timeout_s):
                return await waiting.result
        except TimeoutError:
            raise JobError(
                ErrorCode.DEADLINE_EXCEEDED, f"no answer on this device within {timeout_s:.3f} s"
            ) from None
        finally:
            # One that was given up stays in the queue until its turn, but waits no more.
            if waiting.began is None:
                self._stop_waiting(waiting)

    async def _dispatch(self, worker: WorkerProcess) -> None:
        while True:
            await worker.until_room(SHORT_RUN_S)
            waiting = await self._queue.get()
            if not worker.has_room(SHORT_RUN_S):
                # While the queue was empty a run has turned out to be long.
                self._queue.put_nowait(waiting)
            elif self._reviving[worker].locked():
                self._queue.put_nowait(waiting)
                async with self._reviving[worker]:
                    pass
            elif not waiting.result.done():
                run = asyncio.create_task(self._run(worker, worker.take_slot(), waiting))
                self._runs.add(run)
                run.add_done_callback(self._runs.discard)

    async def _run(self, worker: WorkerProcess, slot: int, waiting: _Waiting) -> None:
        try:
            result = await self._run_on(worker, slot, waiting)
        except Exception as error:  # noqa: BLE001 - whoever waits is told, whatever it is
            if not waiting.result.done():
                waiting.result.set_exception(error)
        else:
            if not waiting.result.done():
                waiting.result.set_result(result)
        finally:
            worker.give_slot(slot)
            self._begun.pop(waiting.number, None)

    async def _run_on(self, worker: WorkerProcess, slot: int, waiting: _Waiting) -> Result:
        def begin() -> None:
            if waiting.began is None and not waiting.result.done():
                waiting.began = asyncio.get_running_loop().time()
                self._stop_waiting(waiting)
                self._begun[waiting.number] = waiting
                waiting.started()

        runs = 0
        while runs < MAX_RUNS:
            generation = worker.generation
            try:
                request = waiting.place(worker.arena(slot), slot)
                reply = await worker.ask(request, self._settings.run_timeout_s, begin)
            except WorkerDiedError as error:
                runs += error.in_turn
                await self._revive(worker, generation)
            except TimeoutError:
                log.warning("worker_hung", pid=worker.pid, timeout_s=self._settings.run_timeout_s)
                await self._revive(worker, generation)
                raise JobError(
                    ErrorCode.MODEL_ERROR,
                    f"the model was cut off after local.run_timeout_s = "
                    f"{self._settings.run_timeout_s:g} s",
                ) from None
            else:
                return _take(reply, worker.arena(slot))
        raise JobError(
            ErrorCode.MODEL_ERROR, f"the worker process died {MAX_RUNS} times while it ran this job"
        )

    def _stop_waiting(self, waiting: _Waiting) -> None:
        self._waits.remove(-waiting.priority, waiting.model)

    async def _revive(self, worker: WorkerProcess, died: int) -> None:
        """Bring back a worker whose generation `died`, unless somebody already has."""
        async with self._reviving[worker]:
            for pause_s in itertools.chain(
                RESPAWN_BACKOFF_S, itertools.repeat(RESPAWN_BACKOFF_S[-1])
            ):
                if worker.generation != died and await self._load(worker):
                    return
                died = worker.generation
                log.warning("worker_restarts", pid=worker.pid, in_s=pause_s)
                await worker.stop()
                self._on_restart()
                await asyncio.sleep(pause_s)
                worker.start()

    async def _load(self, worker: WorkerProcess) -> bool:
        """Load the models that this worker doesn't have; tell whether it lived through that."""
        for model in self._models:
            if model.name in worker.models:
                continue
            try:
                reply = await worker.ask(messages.Load(model), LOAD_TIMEOUT_S)
            except (WorkerDiedError, TimeoutError) as error:
                log.error("worker_start_failed", model=model.name, error=str(error))  # noqa: TRY400
                return False
            worker.models.add(model.name)
            if isinstance(reply, Failed):
                # Sound when it was probed: the file has changed. Its jobs fail by name.
                log.error("model_load_failed", model=model.name, error=reply.message)
        return True


def _take(reply: Reply, arena: Arena) -> Result:
    if isinstance(reply, Failed):
        raise JobError(ErrorCode(reply.code), reply.message)
    assert isinstance(reply, Done)
    return Result(
        tuple(
            Tensor(
                placed.name, placed.datatype, placed.shape, arena.read(placed.offset, placed.size)
            )
            for placed in reply.outputs
        ),
        reply.run_s,
        reply.cpu_s,
    )
