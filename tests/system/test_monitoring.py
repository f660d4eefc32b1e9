"""Dashboards and alerts against a real Prometheus that reads two daemons: one well, one in trouble.

The rules are those that are shipped, with minutes made seconds; Prometheus reads and evaluates once
a second instead of every 15 s. Their expressions stay as they are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest
from aiohttp import web
from shaping import ShapingProxy

from agent.demo.broker import free_port
from agent.simulate.trace import Conditions, Trace

ROOT = Path(__file__).parents[2]
SCRAPE = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTS = SCRAPE.with_name("alerts.yml")
DEVICE = ROOT / "deploy" / "grafana" / "edgewise.json"
FLEET = ROOT / "deploy" / "grafana" / "edgewise-fleet.json"
LAPTOP = Path(__file__).parents[1] / "fixtures" / "devices" / "laptop_two_batteries" / "sys"
WAIT_S = 100.0
ROUND_S = 0.4
WELL, TROUBLED = "well", "troubled"
LATER = {"placement": "only_cloud", "endpoint": "lab", "deferrable": True, "deadline_ms": 600_000}
# What the dashboards' variables stand for while all devices are chosen, in minutes made seconds.
CHOICES = {
    "$device": ".*",
    "$instance": ".*",
    "$model": ".*",
    "$__rate_interval": "10s",
    "$__range": "5m",
    "offset 1m": "offset 1s",
}
# Of the device that is well; through no network at all, throughput can't be told.
LINK = Trace.constant(Conditions(4e6, 4e6, 0.01))
# As the battery lasts for some six hours.
GOALS_H = {WELL: 1, TROUBLED: 12}
# Fails, hedges and has answers audited, as a job's priority asks for.
POLICIES = """
from policies.api import Plan

class Moody:
    def decide(self, situation):
        if situation.job.priority == 0:
            raise RuntimeError("not for this")
        names = [route.name for route in situation.open_routes]
        hedge = "cloud:far" if situation.job.priority == 1 and "cloud:far" in names else None
        if hedge == names[0]:
            hedge = None
        return Plan(names[0], hedge=hedge, audit=situation.job.priority == 2)

class Gloomy:
    def decide(self, situation):
        raise RuntimeError("never")
"""
ENTRY_POINTS = "[edgewise.policies]\nmoody = moods:Moody\ngloomy = moods:Gloomy\n"


class Prometheus:
    """A running Prometheus."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http

    async def ask(self, path: str, **parameters: str) -> Any:
        async with self._http.get(f"{self._url}/api/v1/{path}", params=parameters) as response:
            said = await response.json()
        assert said["status"] == "success", said
        return said["data"]

    async def series(self, expression: str) -> list[dict[str, Any]]:
        """The present value of each series, as labels and value."""
        found = await self.ask("query", query=expression)
        return found["result"]

    async def has_data(self, expression: str) -> bool:
        return any(math.isfinite(float(s["value"][1])) for s in await self.series(expression))

    async def firing(self, device: str, over: str = "5m") -> set[str]:
        """The alerts that a device has had."""
        selector = f'ALERTS{{alertstate="firing", device="{device}"}}'
        found = await self.series(f"count_over_time({selector}[{over}])")
        return {series["metric"]["alertname"] for series in found}

    async def is_ready(self) -> bool:
        try:
            async with self._http.get(f"{self._url}/-/ready") as response:
                return response.ok
        except aiohttp.ClientConnectionError:
            return False


def tool(name: str) -> str:
    """Give the path of a program that not every machine has, but CI does."""
    found = shutil.which(name)
    if found is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"needs {name}")
    return found


@pytest.fixture
def ports() -> dict[str, int]:
    """Where each daemon shows its metrics."""
    return {WELL: free_port(), TROUBLED: free_port()}


@pytest.fixture
async def start_prometheus(tmp_path, ports):
    """Start a Prometheus that reads both daemons, with the rules that are shipped."""
    program = tool("prometheus")
    head, _, _ = SCRAPE.read_text().partition("      - targets:")
    targets = (
        f'      - targets: ["127.0.0.1:{port}"]\n        labels:\n          device: {device}\n'
        for device, port in ports.items()
    )
    settings = tmp_path / "prometheus.yml"
    settings.write_text(head.replace("15s", "1s") + "".join(targets))
    rules = re.sub(r"(?<=[\[: ])(\d+)m(?=[:\]\n])", r"\1s", ALERTS.read_text())
    (tmp_path / ALERTS.name).write_text(rules)
    async with contextlib.AsyncExitStack() as stack:

        async def start() -> Prometheus:
            port = free_port()
            process = await asyncio.create_subprocess_exec(
                program,
                f"--config.file={settings}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{port}",
                "--enable-feature=exemplar-storage",
                "--log.level=error",
            )
            stack.push_async_callback(process.wait)
            stack.callback(process.terminate)
            http = await stack.enter_async_context(aiohttp.ClientSession())
            made = Prometheus(f"http://127.0.0.1:{port}", http)
            async with asyncio.timeout(WAIT_S):
                while not await made.is_ready():  # noqa: ASYNC110 - another process's event
                    await asyncio.sleep(0.1)
            return made

        yield start


@pytest.fixture
def moods(tmp_path) -> dict[str, str]:
    """Policies of a package that is installed for the daemon, as its environment."""
    site = tmp_path / "site"
    info = site / "moods-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "moods.py").write_text(POLICIES)
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: moods\nVersion: 1.0\n")
    return {"PYTHONPATH": str(site)}


@contextlib.asynccontextmanager
async def erratic_cloud() -> AsyncIterator[int]:
    """Serve every model, now at once and now after half a second; give the port."""
    dice = random.Random(7)
    scores = {"name": "scores", "datatype": "FP32", "shape": [1, 10], "data": [0.1] * 10}

    async def infer(request: web.Request) -> web.Response:
        header = json.loads(await request.read())
        await asyncio.sleep(dice.choice((0.0, 0.5)))
        return web.json_response({"id": header["id"], "outputs": [scores]})

    application = web.Application(client_max_size=2**26)
    application.router.add_post("/v2/models/{model}/infer", infer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.01)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        yield port
    finally:
        await runner.cleanup()


class Device:
    """A daemon, and who submits jobs to it."""

    def __init__(self, name: str, daemon: Any, program: Any, digits: Any) -> None:
        self.name = name
        self.daemon = daemon
        self._program = program
        self._digits = digits
        self._numbers = itertools.count()

    async def submit(self, count: int = 1, **parameters: Any) -> None:
        for _ in range(count):
            job_id = f"{self.name}-{next(self._numbers)}"
            await self._program.submit("digits", self._digits.job(job_id, **parameters))

    async def submit_sizes(self) -> None:
        """Submit small and large jobs for the cloud, by which it learns how fast the link is."""
        for size in (100, 10_000, 40_000):
            tensor = {"name": "x", "shape": [size], "datatype": "FP32", "data": [0.5] * size}
            request = {"id": f"{self.name}-{next(self._numbers)}", "inputs": [tensor]}
            await self._program.submit("blob", json.dumps(request).encode())

    async def submit_nonsense(self) -> None:
        await self._program.submit("digits", b"no job")

    async def switch_policy(self, name: str) -> None:
        await self._program.publish("control/policy", json.dumps({"name": name}).encode())

    def kill_worker(self) -> None:
        for worker in self.daemon.workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)

    def limit_files(self, most_bytes: int) -> None:
        """Have no file of the daemon grow beyond so many bytes, as on a full disk."""
        psutil.Process(self.daemon.pid).rlimit(psutil.RLIMIT_FSIZE, (most_bytes, -1))


@pytest.fixture
def set_up(configure, connect, start_daemon, digits, ports, tmp_path, moods):
    """Start a daemon on a laptop's battery that is to last until a goal; give its device."""

    async def start(name: str, endpoints: dict[str, int], **more: Any) -> Device:
        goal = datetime.now().astimezone() + timedelta(hours=GOALS_H[name])
        served = [{"endpoint": endpoint, "name": "digits-large"} for endpoint in endpoints]
        written = configure(
            device={"id": name, "state_dir": str(tmp_path / name), "sysfs_root": str(LAPTOP)},
            http={"listen": f"127.0.0.1:{ports[name]}"},
            network={"metered": True},
            models={"blob": {"cloud": [{"endpoint": "lab"}]}},
            budget={"battery_last_until": f"{goal:%H:%M}", "cloud_cost_per_day": 1000.0},
            endpoints={
                endpoint: {
                    "url": f"http://127.0.0.1:{port}",
                    "price_per_request": 0.01,
                    "probe_interval_s": 0.5,
                }
                for endpoint, port in endpoints.items()
            },
            **more,
        )
        text = written.read_text().replace('"labels"', f'"cloud" = {toml(served)}, "labels"', 1)
        config = written.with_name(f"{name}.toml")
        config.write_text(text)
        program = await connect(of=name, **({"at": more["at"]} if "at" in more else {}))
        daemon = await start_daemon(config, heard_by=program, **moods)
        return Device(name, daemon, program, digits)

    return start


def toml(tables: Iterable[dict[str, str]]) -> str:
    inline = ("{" + ", ".join(f'{k} = "{v}"' for k, v in table.items()) + "}" for table in tables)
    return f"[{', '.join(inline)}]"


def chosen(query: str) -> str:
    """The query as Grafana sends it when all devices are chosen."""
    for variable, value in CHOICES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    return query


def shown(file: Path) -> dict[str, str]:
    """The queries of a dashboard's panels and annotations, by what they are for."""
    content = json.loads(file.read_text())
    queries = {
        f"{file.stem}: {panel['title']} {target['refId']}": target["expr"]
        for panel in content["panels"]
        for target in panel.get("targets", ())
    }
    marks = {f"{file.stem}: {a['name']}": a["expr"] for a in content["annotations"]["list"]}
    return {**queries, **marks}


# The stages of the trouble, and what each of them shows that no earlier one does.
AT_FIRST = {
    "EdgewiseDeadlineMisses",
    "EdgewiseCircuitOpen",
    "EdgewiseBacklogGrowing",
    "EdgewiseBatteryBelowGoal",
    "EdgewiseEstimatesOff",
    "EdgewiseWorkerRestarts",
}
OFFLINE = "edgewise-fleet: Offline devices A"
ONLY_LATER = {"edgewise: Network down", OFFLINE}


class Run:
    """Two daemons that Prometheus reads, and what it is still to show of them."""

    def __init__(self, prometheus: Prometheus, well: Device, troubled: Device) -> None:
        self.well = well
        self.troubled = troubled
        self.empty = {**shown(DEVICE), **shown(FLEET)}
        self.fired: set[str] = set()
        self._prometheus = prometheus

    async def live(self, is_so: Any) -> None:
        """Give both devices what they are to do, round by round, until something is so."""

        async def another_round() -> bool:
            await self.well.submit(2)
            await self.well.submit(priority=2)
            await self.well.submit(placement="only_cloud")
            await self.well.submit_sizes()
            await give_trouble(self.troubled)
            await self.look()
            return is_so()

        await self._repeat(another_round)

    def first_alerts(self) -> bool:
        if "EdgewiseWorkerRestarts" not in self.fired:
            self.troubled.kill_worker()
        return self.fired >= AT_FIRST

    def all_shown(self) -> bool:
        return self.empty.keys() <= ONLY_LATER

    async def fires(self, alert: str) -> None:
        """Wait for an alert of the device that is in trouble."""
        await self.until(lambda: alert in self.fired)

    async def until(self, is_so: Any) -> None:
        async def look() -> bool:
            await self.look()
            return is_so()

        await self._repeat(look)

    async def look(self) -> None:
        """See what has fired, and cross out the queries that give something."""
        self.fired = await self._prometheus.firing(TROUBLED)
        for name, query in list(self.empty.items()):
            if await self._prometheus.has_data(chosen(query)):
                del self.empty[name]

    async def _repeat(self, step: Any) -> None:
        try:
            async with asyncio.timeout(WAIT_S):
                while not await step():  # noqa: ASYNC110 - other processes' events
                    await asyncio.sleep(ROUND_S)
        except TimeoutError:
            raise AssertionError(f"fired: {self.fired}; not shown: {self.empty}") from None


@pytest.mark.timeout(300)
async def test_trouble_fires_its_alerts_and_fills_every_panel_and_a_device_that_is_well_has_none(
    start_prometheus, set_up, start_broker, cloud
):
    broker = start_broker()
    policy = {"name": "moody"}
    async with ShapingProxy(cloud.port, LINK) as link:
        async with erratic_cloud() as erratic_port:
            well = await set_up(WELL, {"lab": link.port}, policy=policy)
            troubled = await set_up(
                TROUBLED,
                {"lab": free_port(), "far": erratic_port},
                at=broker,
                policy={**policy, "shadow": ["prefer-cloud", "gloomy"]},
            )
            # Not before: a device that is yet to start is offline.
            prometheus = await start_prometheus()
            run = Run(prometheus, well, troubled)
            assert len(run.empty) > 80
            await troubled.submit(60, **LATER)
            await run.live(run.first_alerts)
            await troubled.switch_policy("prefer-local")
            await run.live(run.all_shown)
            await check_exemplars(prometheus)
        await troubled.submit(placement="only_cloud", endpoint="far")
        await run.until(lambda: run.empty.keys() == {OFFLINE})
        troubled.limit_files(0)
        await troubled.submit()
        await run.fires("EdgewiseStoreFailing")
        troubled.limit_files(-1)
        broker.stop()
        await run.fires("EdgewiseBrokerDisconnected")
        await troubled.daemon.stop()
        await run.fires("EdgewiseDeviceOffline")
        await run.until(lambda: not run.empty)
        alerts = set(re.findall(r"- alert: (\w+)", ALERTS.read_text()))
        assert await prometheus.firing(TROUBLED) == alerts
        assert not await prometheus.firing(WELL)
        await check_variables(prometheus)


async def give_trouble(device: Device) -> None:
    """Submit jobs of every kind: late, hedged, audited, deferred, none at all, …"""
    await device.submit(2, deadline_ms=0.01)
    await device.submit(2, placement="only_cloud", endpoint="far")
    await device.submit(placement="only_cloud", endpoint="lab")
    await device.submit(priority=0)
    await device.submit(2, priority=1)
    await device.submit(priority=2)
    await device.submit(2, **LATER)
    await device.submit_nonsense()


async def check_exemplars(prometheus: Prometheus) -> None:
    """See that the dots in the latency panel are jobs of these devices."""
    latency = chosen(shown(DEVICE)["edgewise: Latency of jobs that succeeded A"])
    exemplars = await prometheus.ask(
        "query_exemplars", query=latency, start="0", end=str(time.time())
    )
    ids = {e["labels"]["job_id"] for series in exemplars for e in series["exemplars"]}
    assert ids
    assert all(re.fullmatch(rf"({WELL}|{TROUBLED})-\d+", job_id) for job_id in ids)


async def check_variables(prometheus: Prometheus) -> None:
    """See that the dashboards' variables find their values."""
    found = {}
    for file in (DEVICE, FLEET):
        for variable in json.loads(file.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                query = chosen(variable["query"]["query"])
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", query).groups()
                values = await prometheus.ask(f"label/{label}/values", **{"match[]": metric})
                found[file.stem, variable["name"]] = values
    assert found["edgewise", "device"] == found["edgewise-fleet", "device"] == [TROUBLED, WELL]
    assert len(found["edgewise", "instance"]) == 2
    assert found["edgewise", "model"] == ["blob", "digits"]
