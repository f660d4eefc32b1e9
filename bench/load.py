"""The load generator: one process for each measurement, the same for both sides.

Closed loop: so many jobs in flight, the next sent as one is answered. Open loop: at a fixed rate,
whether answers come or not, each latency counted from when the job was due to be sent; a stall
then costs all the jobs that were due in it (no "coordinated omission").
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

import mqtt5
from jobs import ID_WIDTH, KINDS, Publisher

GRACE_S = 10.0
WARM_UP_S = 0.5


@dataclass(slots=True)
class Result:
    """What came of one load."""

    seconds: float = 0.0  # measured, after warming up
    answered: int = 0  # within that time
    jobs: int = 0  # answered in all, warm-up included
    errors: int = 0
    lost: int = 0  # never answered
    per_second: float = 0.0
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    generator_cpu_s: float = 0.0


@dataclass(slots=True)
class _Tally:
    """What has been sent and answered so far."""

    client: mqtt5.Client
    publisher: Publisher
    ids: Iterator[bytes]
    least_answer_bytes: int
    sent: dict[bytes, float] = field(default_factory=dict)
    latencies_s: list[float] = field(default_factory=list)
    jobs: int = 0
    errors: int = 0

    def send(self, counted_from: float) -> None:
        job_id = next(self.ids)
        self.sent[job_id] = counted_from
        self.publisher.publish(job_id)

    def receive(self, timeout_s: float, since: float = 0.0) -> int:
        """Take answers; count the latencies of those that arrive after `since`."""
        taken = 0
        for message in self.client.poll(timeout_s):
            now = time.perf_counter()
            counted_from = self.sent.pop(message.topic.rpartition(b"/")[2], None)
            if counted_from is None:
                continue
            taken += 1
            self.jobs += 1
            if (
                b'"outputs":' not in message.payload
                or len(message.payload) < self.least_answer_bytes
            ):
                self.errors += 1
            if now >= since:
                self.latencies_s.append(now - counted_from)
        return taken

    def drain(self) -> None:
        deadline = time.perf_counter() + GRACE_S
        while self.sent and time.perf_counter() < deadline:
            self.receive(0.1)

    def result(self, latencies_s: list[float], seconds: float) -> Result:
        if len(latencies_s) < 2:
            sys.exit(f"{len(latencies_s)} answers in time, {len(self.sent)} jobs unanswered")
        cuts = statistics.quantiles(latencies_s, n=100, method="inclusive")
        return Result(
            seconds=seconds,
            answered=len(latencies_s),
            jobs=self.jobs,
            errors=self.errors,
            lost=len(self.sent),
            per_second=len(latencies_s) / seconds,
            p50_ms=cuts[49] * 1000,
            p99_ms=cuts[98] * 1000,
            generator_cpu_s=time.process_time(),
        )


def closed_loop(tally: _Tally, in_flight: int, seconds: float) -> Result:
    """Keep `in_flight` jobs under way for `seconds`."""
    since = time.perf_counter() + WARM_UP_S
    end = since + seconds
    for _ in range(in_flight):
        tally.send(time.perf_counter())
    while time.perf_counter() < end:
        for _ in range(tally.receive(0.1, since)):
            tally.send(time.perf_counter())
    measured = list(tally.latencies_s)
    tally.drain()
    return tally.result(measured, seconds)


def open_loop(tally: _Tally, rate: float, seconds: float) -> Result:
    """Send `rate` jobs a second for `seconds`."""
    began = time.perf_counter()
    since = began + WARM_UP_S
    for number in range(int(rate * (WARM_UP_S + seconds))):
        due = began + number / rate
        while (now := time.perf_counter()) < due:
            tally.receive(due - now, since)
        tally.send(due)
    # Late answers count here: leaving them out would leave out the slow ones.
    deadline = time.perf_counter() + GRACE_S
    while tally.sent and time.perf_counter() < deadline:
        tally.receive(0.1, since)
    return tally.result(tally.latencies_s, seconds)


def numbered(tag: str) -> Iterator[bytes]:
    """Give ids that no other load uses: an id sent twice would be answered from the store."""
    width = ID_WIDTH - len(tag) - 1
    return (f"{tag}-{number:0{width}}".encode() for number in itertools.count())


def main() -> None:
    """Run one load and print its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="the broker's")
    parser.add_argument("--device", required=True, help="a topic level")
    parser.add_argument("--model", required=True, choices=KINDS)
    parser.add_argument("--tag", required=True, help="begins the jobs' ids; another for each run")
    parser.add_argument("--seconds", type=float, required=True)
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--in-flight", type=int, help="closed loop")
    load.add_argument("--rate", type=float, help="open loop, jobs a second")
    asked = parser.parse_args()

    client = mqtt5.Client(asked.port, f"load-{asked.tag}")
    client.subscribe(f"edgewise/v1/{asked.device}/results/+")
    kind = KINDS[asked.model]()
    publisher = Publisher(client, asked.device, kind)
    tally = _Tally(client, publisher, numbered(asked.tag), kind.least_answer_bytes)
    if asked.rate is not None:
        result = open_loop(tally, asked.rate, asked.seconds)
    else:
        result = closed_loop(tally, asked.in_flight, asked.seconds)
    client.close()
    print(json.dumps(asdict(result)))


if __name__ == "__main__":
    main()
