"""Run the daemon and a real broker under load while everything around them fails, and count.

Each job must get exactly one answer, whatever is killed, cut off or full in between: the client
publishes, sends again what stays unanswered, and every answer is held against what the models
really say. At the end each answered job is sent once more: the same answer must come.

The seed and the options determine the jobs and the plan of faults. They do not determine how far
the machine is when a fault comes: a run repeated by its seed is alike, and not the same.

Exits 0 when all held; 1 when a job is lost, contradicted or leaked, or its answer not repeated;
2 when the run could not be made.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jobs
import plan
from broker import Mosquitto, StageError
from client import Client, Record
from cloud import FlappingCloud
from conduct import conduct
from daemon import Daemon, write_config
from faults import Clock, MachineFaults, SmallDisk
from plan import Options
from proxy import Proxy
from verdict import Failing, Verdict, judge

from agent.demo.broker import free_port

FIRST_READY_S = 30.0
LAST_READY_S = 60.0  # the daemon's pauses between connects have grown meanwhile
PATIENCE_S = 120.0  # for the last answers, after the load
QUIET_S = 1.0
SHOWN = 10  # failing jobs, with their log lines


@dataclass(slots=True)
class Run:
    """One run, and what there is to tell of it."""

    options: Options
    folder: Path
    quiet: bool
    began: float = field(default_factory=time.monotonic)
    timeline: list[tuple[float, str]] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)  # kinds of faults, and why
    daemon: Daemon | None = None
    client: Client | None = None
    cloud: FlappingCloud | None = None
    not_ready: str | None = None  # what the daemon says at the end, all being well again
    unrepeated: list[Record] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)

    def say(self, what: str) -> None:
        """Put an event on the timeline."""
        at = time.monotonic() - self.began
        self.timeline.append((round(at, 2), what))
        if self.daemon is not None:
            self.daemon.note(f"{at:.2f} s: {what}")
        print(f"{at:9.2f} s  {what}", file=sys.stderr if self.quiet else sys.stdout, flush=True)

    @contextlib.asynccontextmanager
    async def stage(self) -> AsyncIterator[MachineFaults]:
        """Set everything up, for the time of the block."""
        small = self.folder / "disk"
        small.mkdir()
        ports = [free_port() for _ in range(4)]
        broker_port, proxy_port, cloud_port, http_port = ports
        persistent = self.options.broker != "volatile"
        async with contextlib.AsyncExitStack() as stack:
            disk, clock = SmallDisk(small), Clock(self.folder)
            if "disk" in self.options.kinds:
                stack.callback(disk.unmount)
                self._leave_out("disk", disk.mount())
            missing = None if clock.library else "libfaketime is missing: apt install libfaketime"
            if "clock" in self.options.kinds:
                self._leave_out("clock", missing)
            state = small / "state"
            state.mkdir()
            broker = Mosquitto(self.folder, broker_port, persistent=persistent)
            stack.push_async_callback(broker.end)
            await broker.start()
            proxy = Proxy(proxy_port, broker_port)
            stack.push_async_callback(proxy.stop)
            await proxy.start()
            self.cloud = FlappingCloud(cloud_port)
            stack.push_async_callback(self.cloud.stop)
            await self.cloud.become("serve")
            config = self.folder / "edgewise.toml"
            write_config(
                config,
                state=state,
                mqtt_port=proxy_port,
                http_port=http_port,
                cloud_port=cloud_port,
            )
            self.daemon = Daemon(
                config,
                self.folder / "daemon.log",
                http_port=http_port,
                environment=clock.environment() if "clock" in self.options.kinds else {},
                say=self.say,
            )
            self.client = Client(broker_port, jobs.make(self.options.seed, self.options.jobs))
            await self.client.connect()
            stack.push_async_callback(self.client.disconnect)
            yield MachineFaults(self.daemon, broker, proxy, self.cloud, self.say, disk, clock)

    async def make(self) -> None:
        """Run it all.

        Raises:
            StageError: Something that is not under test failed, or the daemon never got ready.
        """
        async with self.stage() as faults:
            assert self.daemon is not None
            assert self.client is not None
            await self.daemon.during(self._load(faults))
            self.say(f"the daemon ended on SIGTERM with {self.daemon.stopped_with}")
        self.verdict = self._judge()

    async def _load(self, faults: MachineFaults) -> None:
        daemon, client, options = self.daemon, self.client, self.options
        assert daemon is not None
        assert client is not None
        not_ready = await daemon.until_ready(FIRST_READY_S)
        if not_ready is not None:
            raise StageError(f"the daemon did not get ready: {not_ready}: see {daemon.log}")
        self.began = time.monotonic()
        self.say("the load begins")
        resending = asyncio.create_task(client.send_again()) if options.resend else None
        planned = plan.make(options)
        possible = [fault for fault in planned if fault.kind not in self.left_out]
        async with asyncio.TaskGroup() as group:
            group.create_task(faults.happen(possible))
            group.create_task(client.publish_all(plan.load(options, planned)))
        self.say(f"the load and the faults are over, {client.outstanding} jobs are unanswered")
        self.not_ready = await daemon.until_ready(LAST_READY_S)
        answered = await client.all_answered(PATIENCE_S)
        self.say("every job is answered" if answered else "the patience is over")
        await client.quiet(QUIET_S, PATIENCE_S)
        if resending is not None:
            resending.cancel()
            self.unrepeated = await client.ask_again(PATIENCE_S / 4)
            await client.quiet(QUIET_S, PATIENCE_S)
            self.say("every answered job has been asked for once more")

    def _leave_out(self, kind: str, reason: str | None) -> None:
        if reason is not None:
            self.left_out[kind] = reason

    @property
    def sound(self) -> bool:
        """Whether all held."""
        return self.verdict.sound

    def report(self, logs: Path | None) -> None:
        """Print what came of it, as JSON where all else is to be quiet."""
        if self.quiet:
            told = {**self.as_json(), "logs": None if logs is None else str(logs)}
            print(json.dumps(told))
            return
        print_report(self)
        if not self.sound:
            print_failing(self)

    def _judge(self) -> Verdict:
        """Hold the answers against the truth."""
        assert self.client is not None
        assert self.cloud is not None
        return judge(
            self.client.records.values(),
            seen_by_cloud=self.cloud.seen,
            unrepeated=self.unrepeated,
            began=self.began,
        )

    def as_json(self) -> dict[str, Any]:
        """Give everything as plain JSON types."""
        daemon, client, cloud, verdict = self.daemon, self.client, self.cloud, self.verdict
        assert daemon is not None
        assert client is not None
        assert cloud is not None
        return {
            "sound": verdict.sound,
            "seed": self.options.seed,
            "replay": self.options.replay(),
            "left_out": self.left_out,
            **verdict.as_json(),
            "resent": client.resent,
            "strays": client.strays.total(),
            "kills": daemon.kills,
            "worker_kills": daemon.worker_kills,
            "starts": daemon.starts,
            "ended_by_itself": daemon.ends,
            "ended_on_sigterm": daemon.stopped_with,
            "not_ready": self.not_ready,
            "cloud_requests": cloud.requests,
            "timeline": self.timeline,
        }


def print_report(run: Run) -> None:
    """Print the counts."""
    told, verdict = run.as_json(), run.verdict
    print()
    for kind, reason in run.left_out.items():
        print(f"left out: {kind}: {reason}")
    for names in (
        ("jobs", "answered", "resent", "duplicates", "strays"),
        ("kills", "worker_kills", "starts", "cloud_requests", "ended_on_sigterm"),
        ("lost", "contradicting", "forgotten", "unrepeated", "leaked", "early"),
    ):
        print("".join(f"{name.replace('_', ' '):>17} {told[name]!s:<7}" for name in names))
    for title, counts in (
        ("answers by route", verdict.by_route),
        ("errors by code", verdict.by_code),
        ("of jobs that could run on the device", verdict.by_code_runnable),
        ("ended by itself, by exit code", told["ended_by_itself"]),
    ):
        if counts:
            print(f"{title}: " + ", ".join(f"{key} {n}" for key, n in sorted(counts.items())))
    if run.not_ready is not None:
        print(f"at the end the daemon is not ready: {run.not_ready}")
    print(f"seed {run.options.seed}; once more: make chaos ARGS='{run.options.replay()}'")
    print("all held" if verdict.sound else "FAILED")


def print_failing(run: Run) -> None:
    """Print what is known of the jobs that something is wrong with."""
    assert run.daemon is not None
    verdict = run.verdict
    log = run.daemon.log.read_text(encoding="utf-8", errors="replace").splitlines()
    for failing in _varied(verdict.failing)[:SHOWN]:
        print(f"\n{failing.id}: {'; '.join(failing.reasons)}")
        print(f"  sent at {', '.join(f'{at:.2f}' for at in failing.sent_s)} s")
        for answer in failing.answers:
            print(f"  answer {answer}")
        for line in log:
            if failing.id in line:
                print(f"  log    {line}")
    if len(verdict.failing) > SHOWN:
        print(f"\nand {len(verdict.failing) - SHOWN} more")
    print(f"\nthe logs are in {run.folder}")


def _varied(failing: list[Failing]) -> list[Failing]:
    """Put one of each kind first, then a second of each, and so on."""
    seen: Counter[str] = Counter()
    ranks = []
    for number, one in enumerate(failing):
        kind = one.reasons[0]
        ranks.append((seen[kind], number))
        seen[kind] += 1
    return [failing[number] for _, number in sorted(ranks)]


def options_of(arguments: list[str] | None = None) -> tuple[Options, argparse.Namespace]:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seed", type=int, help="of the jobs and the faults; by default another one each time")
    add("--jobs", type=int, default=5000)
    add("--kills", type=int, default=24, help="of the daemon; other faults come in proportion")
    add("--seconds", type=float, default=180.0, help="over which jobs and faults are spread")
    add("--faults", default=",".join(plan.KINDS), help="kinds, with commas: %(default)s")
    add(
        "--broker",
        choices=plan.BROKER_WAYS,
        help="what it keeps when it restarts; mixed by default, persistent with --no-resend",
    )
    add(
        "--resend",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether the client sends again what is unanswered",
    )
    add("--json", action="store_true", help="print one JSON object")
    add("--keep", type=Path, metavar="DIR", help="a new folder for the logs, which stays")
    add("--plan", action="store_true", help="print the plan as JSON, and run nothing")
    told = parser.parse_args(arguments)
    kinds = tuple(kind for kind in plan.KINDS if kind in told.faults.split(","))
    unknown = set(filter(None, told.faults.split(","))) - set(plan.KINDS)
    if unknown:
        parser.error(f"no such faults: {', '.join(sorted(unknown))}")
    if told.jobs < 1 or told.kills < 1 or told.seconds <= 0:
        parser.error("--jobs, --kills and --seconds must be above 0")
    broker = told.broker or ("mixed" if told.resend else "persistent")
    if not told.resend and broker != "persistent":
        parser.error("--no-resend needs --broker persistent: another one forgets jobs itself")
    seed = random.SystemRandom().randrange(10**6) if told.seed is None else told.seed
    options = Options(seed, told.jobs, told.kills, told.seconds, kinds, broker, told.resend)
    return options, told


def main() -> int:
    """Make a run."""
    options, told = options_of()
    if told.plan:
        print(json.dumps([fault.as_json() for fault in plan.make(options)], indent=1))
        return 0
    if not told.json:
        print(f"chaos {options.replay()}")
    return conduct("chaos", lambda folder: Run(options, folder, quiet=told.json), told.keep)


if __name__ == "__main__":
    sys.exit(main())
