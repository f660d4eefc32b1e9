"""The demo's four acts: what is published in each, and what comes of it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

from agent.demo.stage import DATA, DEVICE, MODEL, Stage
from agent.job import make_id
from agent.mqtt.client import Client, Submission
from agent.mqtt.link import Broker

IN_FLIGHT = 8
ANSWER_TIMEOUT_S = 40.0  # beyond the daemon's own default deadline
CHANGE_TIMEOUT_S = 20.0
BATTERY_LOW = 15  # percent

Advance = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Image:
    """A held-out image and the digit it shows."""

    path: Path
    label: str


@dataclass(frozen=True, slots=True)
class ActResult:
    """What an act came to. Times are from publish to answer."""

    name: str
    jobs: int
    answered: int
    by_route: dict[str, int]
    accuracy: float | None
    p50_ms: float | None
    p95_ms: float | None


@dataclass(slots=True)
class Report:
    """What the demo came to."""

    jobs: int = 0
    answered: int = 0
    lost: int = 0
    leaked: int = 0
    acts: list[ActResult] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Give the report as plain JSON types."""
        return asdict(self)


def held_out_images() -> list[Image]:
    """List the images that no model was trained on; their names end in their label."""
    return [
        Image(path, path.stem.rpartition("-")[2])
        for path in sorted((DATA / "images").glob("*.png"))
    ]


class Play:
    """Plays the acts one after the other."""

    TITLES = ("all well", "battery low", "cloud down", "private jobs")

    def __init__(self, stage: Stage, images: list[Image]) -> None:
        self._stage = stage
        self._images = images
        self._client = Client(
            Broker("127.0.0.1", stage.mqtt.v5, f"edgewise-demo-{make_id()}", persistent=False),
            DEVICE,
        )
        self._private: set[str] = set()
        self.report = Report()

    @contextlib.asynccontextmanager
    async def connected(self) -> AsyncIterator[Play]:
        """Connect to the broker, for the time of the block."""
        async with self._client.connected():
            await self._wait_for_state(lambda state: "battery_charge_ratio" in state["device"])
            yield self

    async def act(self, number: int, advance: Advance) -> ActResult:
        """Set the scene of an act, publish every image, and wait for the answers."""
        private = number == 3  # noqa: PLR2004 - the last of TITLES
        if number == 1:
            self._stage.set_battery(BATTERY_LOW, "Discharging")
            await self._wait_for_state(
                lambda state: state["device"].get("battery_charge_ratio") == BATTERY_LOW / 100
            )
        elif number == 2:  # noqa: PLR2004
            await self._stage.stop_cloud()
            await self._wait_for_state(lambda state: not _reachable(state))
        elif private:
            await self._stage.start_cloud()
            await self._wait_for_state(_reachable)
        result = await self._publish_all(self.TITLES[number], private=private, advance=advance)
        if private:
            self.report.leaked += await self._leaked()
        self.report.acts.append(result)
        self.report.jobs += result.jobs
        self.report.answered += result.answered
        self.report.lost += result.jobs - result.answered
        return result

    async def _publish_all(self, title: str, *, private: bool, advance: Advance) -> ActResult:
        slots = asyncio.Semaphore(IN_FLIGHT)

        async def one(image: Image) -> tuple[Image, dict[str, Any] | None, float]:
            async with slots:
                job_id = make_id()
                properties = (("privacy", "device"),) if private else ()
                if private:
                    self._private.add(job_id)
                submission = Submission(job_id, image.path.read_bytes(), properties=properties)
                began = time.perf_counter()
                answer = None
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(ANSWER_TIMEOUT_S):
                        answer = await self._client.submit(MODEL, submission)
                advance()
                return image, answer, (time.perf_counter() - began) * 1000

        return _sum_up(title, await asyncio.gather(*(one(image) for image in self._images)))

    async def _leaked(self) -> int:
        return len(self._private.intersection(await self._stage.seen_by_cloud()))

    async def _wait_for_state(self, holds: Callable[[dict[str, Any]], bool]) -> None:
        """Wait until the device itself says that it has noticed what we changed.

        Raises:
            TimeoutError: It has not.
        """
        async with asyncio.timeout(CHANGE_TIMEOUT_S):
            while True:
                state = await self._client.retained("state", CHANGE_TIMEOUT_S)
                if state is not None and holds(state):
                    return


def _reachable(state: dict[str, Any]) -> bool:
    return bool(state["endpoints"]["lab"].get("reachable"))


def _sum_up(title: str, outcomes: list[tuple[Image, dict[str, Any] | None, float]]) -> ActResult:
    good = [(i, a, ms) for i, a, ms in outcomes if a is not None and "error" not in a]
    right = sum(_label(answer) == image.label for image, answer, _ in good)
    times = [ms for _, _, ms in good]
    cuts = quantiles(times, n=100) if len(times) > 1 else None
    return ActResult(
        name=title,
        jobs=len(outcomes),
        answered=sum(answer is not None for _, answer, _ in outcomes),
        by_route=dict(Counter(answer["parameters"]["route"] for _, answer, _ in good)),
        accuracy=round(right / len(good), 4) if good else None,
        p50_ms=round(cuts[49], 2) if cuts else None,
        p95_ms=round(cuts[94], 2) if cuts else None,
    )


def _label(answer: dict[str, Any]) -> str:
    return next(str(o["data"][0]) for o in answer["outputs"] if o["name"] == "label")
