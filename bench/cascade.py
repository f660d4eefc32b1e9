"""What `cascade` reaches on the demo's digits: accuracy against the share sent to the cloud.

The demo's two models run on its 360 held-out images, once each; their answers are then replayed as
routes to the real router, with the real policy, on a virtual clock. Since images are few, they are
used as in cross-validation: for each seed they are shuffled and cut into five. The policy learns
from four parts, shown several times over, and is measured on the fifth, shown once, whose images
it has never seen; and so with each part. It goes on learning while it is measured, and audits
count as sent to the cloud. The target that is judged follows from the question: to be within 0.5
points of the large model is to agree with it in 99.5 of 100. The others are there for the curve.
"""

from __future__ import annotations

import asyncio
import random
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from PIL import Image

import agent
from agent.config import Device, Endpoint, Energy
from agent.config import Model as ModelSettings
from agent.estimate import EnergyAccount, Estimates
from agent.events import Attempted, Events
from agent.job import Answer, Job, JobError, Load, Outcome
from agent.plugins import LoadedPolicy
from agent.router.decider import Decider
from agent.router.router import Router
from agent.routes import labels, unheard
from agent.routes.interpreter import Model
from agent.routes.messages import ModelSpec
from agent.sensors.sampler import Sampler
from agent.simulate import clock
from agent.wire import tensors
from policies.cascade import Cascade

DATA = Path(agent.__file__).parent / "demo" / "data"
WITHIN = 0.005  # of the large model's accuracy
SENT_MOST = 1 / 3
TARGETS = (0.97, 0.98, 0.985, 0.99, 0.995)
JUDGED = 0.995
PARTS = 5
BETWEEN_S = 0.5  # jobs, so that an audit is over before the next one


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is measured."""

    seeds: int
    passes: int  # over what is learned from


FULL = Scale(seeds=5, passes=3)
QUICK = Scale(seeds=2, passes=2)


@dataclass(frozen=True, slots=True)
class Seen:
    """An image, and what the two models say of it."""

    name: str
    truth: str
    local: Outcome
    cloud: Outcome


@dataclass(frozen=True, slots=True)
class Point:
    """An accuracy, and the share of images that was sent to the cloud for it."""

    what: str
    accuracy: float
    sent: float
    audited: float = 0.0  # of `sent`
    spread: float = 0.0  # standard deviation of the accuracy over the seeds


@dataclass(slots=True)
class Measured:
    """All figures."""

    local: float
    cloud: float
    curve: list[Point]
    reached: list[Point]


class Replayed:
    """A route that answers as its model did."""

    waiting = running = 0

    def __init__(self, name: str, answers: Callable[[Job], Outcome]) -> None:
        self.name = name
        self.kind = name.partition(":")[0]
        self.sent: Counter[str] = Counter()
        self._answers = answers

    def serves(self, model: str) -> bool:  # noqa: ARG002 - part of `Route`
        """All there are."""
        return True

    def closed_for(self, job: Job) -> JobError | None:  # noqa: ARG002 - part of `Route`
        """Never closed."""
        return None

    def load(self, job: Job | None) -> Load:  # noqa: ARG002 - part of `Route`
        """Never busy."""
        return Load(parallel=4)

    def price(self, job: Job) -> float:  # noqa: ARG002 - part of `Route`
        """For nothing."""
        return 0.0

    async def run(
        self,
        job: Job,
        timeout_s: float,
        started: Callable[[], None],
        streamed: Callable[[str], None] = unheard,
    ) -> Outcome:
        """Give the model's answer, and count."""
        del timeout_s, streamed
        started()
        self.sent[job.id] += 1
        await asyncio.sleep(0.01)
        return self._answers(job)


def look(folder: Path = DATA) -> list[Seen]:
    """Have both models look at every image."""
    names = labels.read("digits", ModelSettings("", labels=str(DATA / "digits.labels.txt")))
    small, large = (_load(folder if size == "small" else DATA, size) for size in ("small", "large"))
    seen = []
    for path in sorted((DATA / "images").glob("*.png")):
        with Image.open(path) as image:
            pixels = (np.asarray(image, np.float32) / 255).reshape(1, 8, 8, 1)
        local, cloud = (_outcome(model, pixels, names) for model in (small, large))
        seen.append(Seen(path.stem, path.stem[-1], local, cloud))
    return seen


def _load(folder: Path, size: str) -> Model:
    path = folder / f"digits_{size}.tflite"
    return Model(ModelSpec(f"digits-{size}", str(path), None, 1, stateful=False, image=None))


def _outcome(model: Model, pixels: Any, names: Sequence[str]) -> Outcome:
    outputs = model.run({"image": pixels})
    given = tuple(tensors.from_array(name, values) for name, values in outputs.items())
    labelled, confidence = labels.attach(given, names, 1)
    return Outcome(labelled, run_s=0.01, confidence=confidence)


def _label(outputs: tuple[tensors.Tensor, ...]) -> str:
    return (labels.best(outputs) or b"").decode()


def sweep(seen: Sequence[Seen]) -> list[Point]:
    """Give what each fixed threshold comes to, were it known beforehand."""
    points = []
    for threshold in (0.0, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.96, 0.98, 1.0):
        escalated = [(each.local.confidence or 0.0) < threshold for each in seen]
        right = sum(
            _label((each.cloud if up else each.local).outputs) == each.truth
            for each, up in zip(seen, escalated, strict=True)
        )
        share = sum(escalated) / len(seen)
        points.append(Point(f"threshold {threshold:g}", right / len(seen), share))
    return points


async def _go(policy: Any, stretches: Sequence[Sequence[Seen]]) -> tuple[int, int, int]:
    """Show the policy image after image.

    Returns:
        Of the last stretch: the right answers, the images sent to the cloud, and of these the
        audited ones.
    """
    now = asyncio.get_running_loop().time
    by_id = {each.name: each for stretch in stretches for each in stretch}
    local = Replayed("local", lambda job: by_id[job.id].local)
    cloud = Replayed("cloud:lab", lambda job: by_id[job.id].cloud)
    events = Events()
    estimates = Estimates(
        {"lab": Endpoint(url="http://127.0.0.1:9")}, EnergyAccount(Energy(), clock=now), clock=now
    )
    router = Router(
        (local, cloud),
        {"digits": ModelSettings("digits")},
        Decider(LoadedPolicy("cascade", policy), 60.0),
        estimates=estimates,
        sampler=Sampler(Device()),
        events=events,
        clock=now,
    )
    events.subscribe(Attempted, estimates.learn)
    events.subscribe(Attempted, router.learn)
    right = escalated = 0
    for stretch in stretches:
        cloud.sent.clear()
        right = escalated = 0
        for each in stretch:
            answer = await router.run(Job(each.name, "digits", now(), now() + 1.0))
            assert isinstance(answer, Answer)
            right += _label(answer.outputs) == each.truth
            escalated += answer.account.route == "cloud"
            await asyncio.sleep(BETWEEN_S)
    sent = cloud.sent.total()
    return right, sent, sent - escalated


def learn(seen: Sequence[Seen], target: float, scale: Scale) -> Point:
    """Give what the policy comes to with this target accuracy, by cross-validation."""
    accuracies, shares, audits = [], [], []
    for seed in range(scale.seeds):
        chance = random.Random(seed)
        mixed = chance.sample(seen, len(seen))
        right = sent = audited = 0
        for part in range(PARTS):
            unseen = mixed[part::PARTS]
            taught = [each for number, each in enumerate(mixed) if number % PARTS != part]
            options = Cascade.Options(of="prefer-local", target_accuracy=target, seed=seed)
            lessons = [chance.sample(taught, len(taught)) for _ in range(scale.passes)]
            found = clock.run(_go(Cascade(options), (*lessons, unseen)))
            right, sent, audited = (
                *(now + more for now, more in zip((right, sent, audited), found, strict=True)),
            )
        accuracies.append(right / len(seen))
        shares.append(sent / len(seen))
        audits.append(audited / len(seen))
    return Point(
        f"target {target:g}",
        statistics.fmean(accuracies),
        statistics.fmean(shares),
        statistics.fmean(audits),
        statistics.pstdev(accuracies),
    )


def measure(scale: Scale) -> Measured:
    """Measure it all."""
    machine.say("cascade: both models on all images")
    seen = look()
    right = [
        sum(_label(outcome.outputs) == each.truth for each, outcome in answers) / len(seen)
        for answers in (
            [(each, each.local) for each in seen],
            [(each, each.cloud) for each in seen],
        )
    ]
    machine.say(f"cascade: {len(TARGETS)} targets, {scale.seeds} seeds")
    return Measured(*right, sweep(seen), [learn(seen, target, scale) for target in TARGETS])


def holds(point: Point, measured: Measured) -> bool:
    """Tell whether it is as accurate as the large model, and sends little."""
    return point.accuracy >= measured.cloud - WITHIN and point.sent <= SENT_MOST


def print_table(measured: Measured) -> None:
    """Print the curve, what was reached, and the verdict."""
    print(f"small model {measured.local:.2%}, large model {measured.cloud:.2%}")
    print("a fixed threshold, known beforehand    accuracy   to the cloud")
    for point in measured.curve:
        print(f"  {point.what:34} {point.accuracy:10.2%} {point.sent:14.1%}")
    print("cascade, on images it has not seen     accuracy   to the cloud   audits of that")
    for point in measured.reached:
        print(
            f"  {point.what:22} (+- {point.spread:6.2%}) {point.accuracy:10.2%} {point.sent:14.1%}"
            f" {point.audited:16.1%}"
        )
    judged = measured.reached[TARGETS.index(JUDGED)]
    could = any(holds(point, measured) for point in measured.curve)
    print(
        f"within {WITHIN * 100:g} points of the large model, at most {SENT_MOST:.1%} sent: "
        f"{judged.what} {machine.verdict(holds(judged, measured))}"
        f"{'' if could else '; by no fixed threshold either'}"
    )
