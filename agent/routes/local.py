"""The local route: jobs wait by priority and deadline for a worker process that runs them."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import structlog

from agent.config import Local, Model
from agent.job import ErrorCode, Job, JobError, Outcome, Tensor
from agent.routes import fitting, labels
from agent.routes.messages import (
    Done,
    Failed,
    Load,
    Loaded,
    ModelSpec,
    Placed,
    Prepare,
    Request,
    Run,
    RunImage,
)
from agent.routes.process import WorkerDiedError, WorkerProcess
from policies import api

log = structlog.get_logger(__name__)

# A job whose worker dies under it is given one more, and no third.
MAX_RUNS = 2
LOAD_TIMEOUT_S = 60.0
RESPAWN_BACKOFF_S = (0.0, 0.1, 0.5, 2.0, 10.0)

# Puts a request's data into the worker's shared memory and gives the request.
Placement = Callable[[WorkerProcess], Request]


@dataclass(order=True, slots=True)
class _Waiting:
    """A request in the queue: higher priority first, then the earlier deadline, then arrival."""

    priority: int  # negated
    deadline_at: float
    number: int
    place: Placement = field(compare=False)
    result: asyncio.Future[_Result] = field(compare=False)
    started: Callable[[], None] = field(compare=False)
    taken: bool = field(default=False, compare=False)  # by a worker


@dataclass(slots=True)
class _Result:
    """A worker's reply, with its tensors copied out of shared memory."""

    outputs: tuple[Tensor, ...]
    run_s: float


class LocalRoute:
    """Runs jobs on this device's worker processes."""

    name = api.LOCAL
    kind = api.LOCAL

    def __init__(
        self,
        settings: Local,
        models: Mapping[str, Model],
        *,
        clock: Callable[[], float] = time.monotonic,
        on_restart: Callable[[], None] = lambda: None,
    ) -> None:
        """Set the route up; `start` brings its workers to life.

        Args:
            settings: Workers and their limits.
            models: All models of the configuration, those without a path included.
            clock: Monotonic seconds.
            on_restart: Called each time a worker has to be started again.

        Raises:
            ConfigError: A model's labels can't be read.
        """
        self._settings = settings
        self._models = models
        self._labels = {name: labels.read(name, model) for name, model in models.items()}
        self._clock = clock
        self._on_restart = on_restart
        self._loaded: dict[str, Loaded] = {}
        self._refused: dict[str, str] = {}
        self._queue: asyncio.PriorityQueue[_Waiting] = asyncio.PriorityQueue()
        self._numbers = itertools.count()
        self._waiting = 0
        self._running = 0
        self._workers: list[WorkerProcess] = []
        self._serving: list[asyncio.Task[None]] = []

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._waiting

    @property
    def running(self) -> int:
        """Jobs on a worker."""
        return self._running

    @property
    def loaded(self) -> Mapping[str, Loaded]:
        """The models that run here: what they take, give, and took on their first run."""
        return self._loaded

    @property
    def refused(self) -> Mapping[str, str]:
        """The models that failed their probe, and why."""
        return self._refused

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the running workers."""
        return [worker.pid for worker in self._workers if worker.pid is not None]

    async def start(self) -> None:
        """Probe every model in a throw-away process, then load the sound ones in each worker."""
        if not any(model.path or model.image_input for model in self._models.values()):
            return
        self._workers = [
            WorkerProcess(self._settings.memory_mb) for _ in range(self._settings.workers)
        ]
        for worker in self._workers:
            worker.start()
        self._loaded, self._refused = await probe(self._models, self._settings)
        await asyncio.gather(*(self._load(worker) for worker in self._workers))
        self._serving = [asyncio.create_task(self._serve(worker)) for worker in self._workers]

    async def stop(self) -> None:
        """Stop serving and kill the workers."""
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)
        await asyncio.gather(*(worker.stop() for worker in self._workers))

    def closed_for(self, job: Job) -> JobError | None:
        """Tell why this device can't run the job's model, or None."""
        if job.model in self._loaded:
            return None
        if job.model in self._refused:
            return JobError(ErrorCode.MODEL_ERROR, self._refused[job.model])
        return JobError(ErrorCode.NO_ROUTE, f"model '{job.model}' is not on this device")

    async def run(self, job: Job, timeout_s: float, started: Callable[[], None]) -> Outcome:
        """Run the job on a worker; see `Route`."""
        try:
            place = self._place_job(job)
        except JobError as error:
            return Outcome(error=error, retriable=False)
        began = running = self._clock()

        def on_start() -> None:
            nonlocal running
            running = self._clock()
            started()

        try:
            result = await self._ask(job, place, timeout_s, on_start)
        except JobError as error:
            retriable = error.code is not ErrorCode.BAD_REQUEST
            return Outcome(
                error=error,
                queue_s=running - began,
                run_s=self._clock() - running,
                retriable=retriable,
            )
        model = self._models[job.model]
        outputs, confidence = labels.attach(result.outputs, self._labels[job.model], model.top_k)
        return Outcome(
            outputs=outputs,
            queue_s=running - began,
            run_s=result.run_s,
            confidence=confidence,
        )

    async def prepare(self, job: Job, timeout_s: float) -> tuple[Tensor, ...]:
        """Turn an image job's image into the tensors that its model takes, in real numbers.

        Raises:
            JobError: The image can't be decoded, or the model takes none.
        """
        settings = self._models[job.model].image_input
        if settings is None or job.image is None:
            raise _takes_no_images(job.model)
        image = job.image

        def place(worker: WorkerProcess) -> Request:
            worker.arena.write([image])
            return Prepare(job.model, len(image), settings)

        return (await self._ask(job, place, timeout_s, lambda: None)).outputs

    def label(
        self, model: str, outputs: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], float | None]:
        """Add labels to outputs of this model that came from elsewhere: see `labels.attach`."""
        return labels.attach(outputs, self._labels[model], self._models[model].top_k)

    async def _ask(
        self, job: Job, place: Placement, timeout_s: float, started: Callable[[], None]
    ) -> _Result:
        waiting = _Waiting(
            -job.priority,
            job.deadline_at,
            next(self._numbers),
            place,
            asyncio.get_running_loop().create_future(),
            started,
        )
        self._waiting += 1
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
            if not waiting.taken:
                self._waiting -= 1

    async def _serve(self, worker: WorkerProcess) -> None:
        while True:
            waiting = await self._queue.get()
            if waiting.result.done():
                continue
            waiting.taken = True
            self._waiting -= 1
            waiting.started()
            self._running += 1
            try:
                result = await self._run_on(worker, waiting.place)
            except JobError as error:
                if not waiting.result.done():
                    waiting.result.set_exception(error)
            else:
                if not waiting.result.done():
                    waiting.result.set_result(result)
            finally:
                self._running -= 1

    async def _run_on(self, worker: WorkerProcess, place: Placement) -> _Result:
        for _ in range(MAX_RUNS):
            try:
                reply = await worker.ask(place(worker), self._settings.run_timeout_s)
            except WorkerDiedError:
                log.warning("worker_died", pid=worker.pid)
                await self._respawn(worker)
                continue
            except TimeoutError:
                log.warning("worker_hung", pid=worker.pid, timeout_s=self._settings.run_timeout_s)
                await self._respawn(worker)
                raise JobError(
                    ErrorCode.MODEL_ERROR,
                    f"the model was cut off after local.run_timeout_s = "
                    f"{self._settings.run_timeout_s:g} s",
                ) from None
            if isinstance(reply, Failed):
                raise JobError(ErrorCode(reply.code), reply.message)
            assert isinstance(reply, Done)
            return _Result(
                tuple(
                    Tensor(p.name, p.datatype, p.shape, worker.arena.read(p.offset, p.size))
                    for p in reply.outputs
                ),
                reply.run_s,
            )
        raise JobError(
            ErrorCode.MODEL_ERROR, f"the worker process died {MAX_RUNS} times while it ran this job"
        )

    async def _respawn(self, worker: WorkerProcess) -> None:
        for attempt in itertools.count():
            await worker.stop()
            self._on_restart()
            await asyncio.sleep(RESPAWN_BACKOFF_S[min(attempt, len(RESPAWN_BACKOFF_S) - 1)])
            worker.start()
            try:
                await self._load(worker)
            except (WorkerDiedError, TimeoutError) as error:
                log.error("worker_start_failed", attempt=attempt + 1, error=str(error))  # noqa: TRY400
                continue
            return

    async def _load(self, worker: WorkerProcess) -> None:
        for name in self._loaded:
            reply = await worker.ask(Load(_spec(name, self._models[name])), LOAD_TIMEOUT_S)
            if isinstance(reply, Failed):
                # Sound when it was probed: the file has changed. Its jobs fail by name.
                log.error("model_load_failed", model=name, error=reply.message)

    def _place_job(self, job: Job) -> Placement:
        if job.image is not None:
            if self._models[job.model].image_input is None:
                raise _takes_no_images(job.model)
            image = job.image

            def place_image(worker: WorkerProcess) -> Request:
                worker.arena.write([image])
                return RunImage(job.model, len(image))

            return place_image
        fitting.check(job, self._loaded[job.model])

        def place_tensors(worker: WorkerProcess) -> Request:
            offsets = worker.arena.write([tensor.data for tensor in job.inputs])
            placed = [
                Placed(t.name, t.datatype, t.shape, offset, len(t.data))
                for t, offset in zip(job.inputs, offsets, strict=True)
            ]
            return Run(job.model, placed)

        return place_tensors


async def probe(
    models: Mapping[str, Model], settings: Local
) -> tuple[dict[str, Loaded], dict[str, str]]:
    """Load each local model and run it once, in a throw-away process: it may kill or hang it.

    Returns:
        What each sound model takes and gives, and why each other one is refused.
    """
    sound: dict[str, Loaded] = {}
    refused: dict[str, str] = {}
    process = WorkerProcess(settings.memory_mb)
    for name, model in models.items():
        if model.path is None:
            continue
        if process.pid is None:
            process.start()
        try:
            reply = await process.ask(Load(_spec(name, model)), LOAD_TIMEOUT_S)
        except (WorkerDiedError, TimeoutError) as error:
            how = "hangs" if isinstance(error, TimeoutError) else "kills"
            refused[name] = f"model '{name}': {model.path} {how} the interpreter"
            await process.stop()
            continue
        if isinstance(reply, Loaded):
            sound[name] = reply
        elif isinstance(reply, Failed):
            refused[name] = reply.message
    await process.stop()
    return sound, refused


def _spec(name: str, model: Model) -> ModelSpec:
    assert model.path is not None
    return ModelSpec(
        name, model.path, model.sha256, model.threads, model.stateful, model.image_input
    )


def _takes_no_images(model: str) -> JobError:
    return JobError(
        ErrorCode.BAD_REQUEST, f"model '{model}' takes no images: its preprocess is not 'image'"
    )
