"""The local route: runs jobs on this device's worker processes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import msgspec

from agent.config import ImageInput, Local, Model
from agent.job import ErrorCode, Job, JobError, Load, Outcome, Tensor
from agent.routes import fitting, labels, messages, unheard
from agent.routes.messages import (
    Arena,
    Failed,
    Loaded,
    ModelSpec,
    Placed,
    Prepare,
    Reply,
    Request,
    Run,
    RunImage,
)
from agent.routes.pool import LOAD_TIMEOUT_S, Placement, Result, WorkerPool
from agent.routes.process import WorkerDiedError, WorkerProcess
from agent.routes.protocols import Port
from agent.routes.protocols.ports import image_size
from policies import api

# Something else may have killed the process: the model is to blame if it happens again.
PROBES = 2
MIDDLING = 5  # the priority of a job that names none


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
        self._pool = WorkerPool(settings, on_restart)
        self._loaded: dict[str, Loaded] = {}
        self._refused: dict[str, str] = {}

    @property
    def waiting(self) -> int:
        """Jobs in the queue."""
        return self._pool.waiting

    @property
    def running(self) -> int:
        """Jobs on a worker."""
        return self._pool.running

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
        return self._pool.pids

    async def start(self) -> None:
        """Probe every model in a throw-away process, then load the sound ones in each worker."""
        if not any(model.path or model.image_input for model in self._models.values()):
            return
        self._pool.boot()
        self._loaded, self._refused = await probe(self._models, self._settings)
        await self._pool.open([_spec(name, self._models[name]) for name in self._loaded])

    async def stop(self) -> None:
        """Stop serving and kill the workers."""
        await self._pool.stop()

    def serves(self, model: str) -> bool:
        """Tell whether the model has a file on this device; see `Route`."""
        return self._models[model].path is not None

    def closed_for(self, job: Job) -> JobError | None:
        """Tell why this device can't run the job's model, or None."""
        if job.model in self._loaded:
            return None
        if job.model in self._refused:
            return JobError(ErrorCode.MODEL_ERROR, self._refused[job.model])
        return JobError(ErrorCode.NO_ROUTE, f"model '{job.model}' is not on this device")

    def load(self, job: Job | None) -> Load:
        """Tell what the job would find before it here; see `Route`."""
        return self._pool.load(MIDDLING if job is None else job.priority)

    def price(self, job: Job) -> float:  # noqa: ARG002 - part of `Route`
        """Nothing: no money is spent on the device."""
        return 0.0

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,  # noqa: ARG002 - part of `Route`
    ) -> Outcome:
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
                timed_out=error.code is ErrorCode.DEADLINE_EXCEEDED,
            )
        model = self._models[job.model]
        outputs, confidence = labels.attach(result.outputs, self._labels[job.model], model.top_k)
        return Outcome(
            outputs=outputs,
            queue_s=running - began,
            run_s=result.run_s,
            cpu_s=result.cpu_s,
            confidence=confidence,
        )

    async def prepare(
        self, job: Job, timeout_s: float, port: Port | None = None
    ) -> tuple[Tensor, ...]:
        """Turn an image job's image into the tensors that its model takes, in real numbers.

        Args:
            job: The job.
            timeout_s: How long it may take.
            port: The input of the model at an endpoint, where that is known; it has the size that
                the configuration doesn't name.

        Raises:
            JobError: The image can't be decoded, or the model takes none.
        """
        settings = self._models[job.model].image_input
        if settings is None or job.image is None:
            raise _takes_no_images(job.model)
        image = job.image
        if settings.size is None and port is not None:
            settings = _sized(settings, port)
        if settings.size is None and job.model not in self._loaded:
            raise self._of_unknown_size(job.model)

        def place(arena: Arena, slot: int) -> Request:
            arena.write([image])
            return Prepare(slot, job.model, len(image), settings)

        return (await self._ask(job, place, timeout_s, lambda: None)).outputs

    def _of_unknown_size(self, model: str) -> JobError:
        """Only a model on the device or at the endpoint could tell the size."""
        return JobError(
            ErrorCode.MODEL_ERROR,
            self._refused.get(
                model,
                f"model '{model}': the endpoint does not tell what size of image it takes: set "
                "preprocess.size",
            ),
        )

    def label(
        self, model: str, outputs: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], float | None]:
        """Add labels to outputs of this model that came from elsewhere: see `labels.attach`."""
        return labels.attach(outputs, self._labels[model], self._models[model].top_k)

    async def _ask(
        self, job: Job, place: Placement, timeout_s: float, started: Callable[[], None]
    ) -> Result:
        return await self._pool.ask(
            place,
            model=job.model,
            priority=job.priority,
            deadline_at=job.deadline_at,
            timeout_s=timeout_s,
            started=started,
        )

    def _place_job(self, job: Job) -> Placement:
        if job.image is not None:
            if self._models[job.model].image_input is None:
                raise _takes_no_images(job.model)
            image = job.image

            def place_image(arena: Arena, slot: int) -> Request:
                arena.write([image])
                return RunImage(slot, job.model, len(image))

            return place_image
        loaded = self._loaded[job.model]
        outputs = set(job.outputs) - set(labels.ADDED)
        fitting.check(job.model, job.inputs, outputs, loaded.inputs, loaded.outputs)

        def place_tensors(arena: Arena, slot: int) -> Request:
            offsets = arena.write([tensor.data for tensor in job.inputs])
            placed = [
                Placed(t.name, t.datatype, t.shape, offset, len(t.data))
                for t, offset in zip(job.inputs, offsets, strict=True)
            ]
            return Run(slot, job.model, placed)

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
        reply: Reply | None = None
        how = ""
        for _ in range(PROBES):
            if process.pid is None:
                process.start()
            try:
                reply = await process.ask(messages.Load(_spec(name, model)), LOAD_TIMEOUT_S)
                break
            except (WorkerDiedError, TimeoutError) as error:
                how = "hangs" if isinstance(error, TimeoutError) else "kills"
                await process.stop()
        if isinstance(reply, Loaded):
            sound[name] = reply
        elif isinstance(reply, Failed):
            refused[name] = reply.message
        else:
            refused[name] = f"model '{name}': {model.path} {how} the interpreter"
    await process.stop()
    return sound, refused


def _spec(name: str, model: Model) -> ModelSpec:
    assert model.path is not None
    return ModelSpec(
        name,
        model.path,
        model.sha256,
        model.threads,
        model.stateful,
        model.image_input,
        model.max_output_tokens,
    )


def _sized(settings: ImageInput, port: Port) -> ImageInput:
    known = image_size(port)
    if known is None:
        return settings
    height, width, channels = known
    color = settings.color
    if color == "auto" and channels == 1:
        color = "grey"
    return msgspec.structs.replace(settings, size=(width, height), color=color)


def _takes_no_images(model: str) -> JobError:
    return JobError(
        ErrorCode.BAD_REQUEST, f"model '{model}' takes no images: its preprocess is not 'image'"
    )
