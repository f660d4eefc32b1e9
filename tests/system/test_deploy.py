"""What an operator installs: the unit, the configuration, the scrape example, the dashboard."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from agent import config, plugins
from agent.config import Endpoint, Model, load
from agent.daemon import Daemon
from agent.demo.broker import free_port

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "edgewise.service"
EXAMPLE = ROOT / "deploy" / "edgewise.toml"
SCRAPE = ROOT / "deploy" / "prometheus" / "prometheus.yml"
DASHBOARD = ROOT / "deploy" / "grafana" / "edgewise.json"
MAX_EXPOSURE = 1.1  # systemd's measure: 0 is closed, 10 wide open
WAIT_S = 30.0
# What a dashboard's variables stand for while all devices are chosen.
CHOICES = {
    "$device": ".*",
    "$instance": ".*",
    "$model": ".*",
    "$__rate_interval": "1m",
    "$__range": "1h",
}
# Fails on low priority, so that the dashboard has a policy's failure to show.
MOODY = """
from policies.api import Plan

class Moody:
    def decide(self, situation):
        if situation.job.priority == 0:
            raise RuntimeError("not for this")
        route = situation.open_routes[0]
        return Plan(route.name, expected=route.estimate)
"""


def tool(name: str) -> str:
    """Give the path of a program that not every machine has, but CI does."""
    found = shutil.which(name)
    if found is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"needs {name}")
    return found


# The unit


@pytest.fixture
def unit(tmp_path) -> Path:
    """The unit, with a program that is on this machine."""
    installed = tmp_path / UNIT.name
    program = r"^ExecStart=\S+"
    installed.write_text(
        re.sub(program, f"ExecStart={sys.executable}", UNIT.read_text(), flags=re.MULTILINE)
    )
    return installed


def test_systemd_finds_nothing_wrong_with_the_unit(unit):
    ended = subprocess.run(
        [tool("systemd-analyze"), "verify", unit], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_the_unit_is_exposed_to_little(unit):
    ended = subprocess.run(
        [tool("systemd-analyze"), "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        check=True,
    )
    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", ended.stdout)
    assert float(exposure[1]) <= MAX_EXPOSURE, ended.stdout


def test_the_unit_lets_workers_live_while_the_daemon_drains():
    lines = UNIT.read_text().splitlines()
    assert "KillMode=mixed" in lines
    assert "OOMPolicy=continue" in lines
    assert "RestartPreventExitStatus=78" in lines


# The configuration


@pytest.fixture
def uncommented(tmp_path) -> Path:
    """The example, with every key that it shows set."""
    shown = tmp_path / "edgewise.toml"
    shown.write_text(re.sub(r"^#(?=[a-z\[])", "", EXAMPLE.read_text(), flags=re.MULTILINE))
    return shown


def test_the_example_configuration_is_accepted_and_changes_nothing(tmp_path):
    empty = tmp_path / "edgewise.toml"
    empty.touch()
    assert load(EXAMPLE, environ={}) == load(empty, environ={})


def test_the_example_shows_every_key(uncommented):
    shown = tomllib.loads(uncommented.read_text())
    for section, kind in sections().items():
        assert list(shown[section]) == keys(kind)
    assert list(shown["models"]["vibration"]) == keys(Model)
    assert list(shown["endpoints"]["lab"]) == keys(Endpoint)
    image = shown["models"]["digits"]["preprocess"]
    assert list(image) == ["kind", *keys(config.ImageInput)]


def test_what_the_example_shows_as_defaults_are_the_defaults(uncommented):
    loaded = load(uncommented, environ={})
    pairs = [(getattr(loaded, name), kind) for name, kind in sections().items()]
    pairs.append((loaded.models["vibration"], Model))
    pairs.append((loaded.models["digits"].preprocess, config.ImageInput))
    pairs.append((loaded.endpoints["lab"], Endpoint))
    for section, kind in pairs:
        for field in msgspec.structs.fields(kind):
            # Where there is no default, the example shows an example.
            if field.default not in (msgspec.NODEFAULT, None, "", ()):
                assert getattr(section, field.name) == field.default, field.name


def test_the_examples_policy_options_are_the_policys_defaults(uncommented):
    policy = msgspec.structs.replace(load(uncommented, environ={}).policy, path=None)
    plugins.load(policy)
    (known,) = [info for info in plugins.available() if info.name == policy.name]
    assert policy.options == known.options


def sections() -> dict[str, Any]:
    """The sections that are not tables of named things."""
    fields = msgspec.structs.fields(config.Config)
    return {f.name: f.type for f in fields if f.name not in ("models", "endpoints")}


def keys(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


# The scrape example and the dashboard


def test_promtool_accepts_the_scrape_example():
    ended = subprocess.run(
        [tool("promtool"), "check", "config", SCRAPE], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_scrape_example_reads_where_the_daemon_listens():
    assert f'targets: ["{config.Http().listen}"]' in SCRAPE.read_text()


def test_the_dashboard_names_only_metrics_that_the_daemon_exports(configure):
    config = load(configure(), environ={})
    exported = {family.name for family in Daemon(config, lambda: config).metrics.registry.collect()}
    named = set(re.findall(r"edgewise_\w+", DASHBOARD.read_text()))
    # A family's name is without what its kind adds to its series'.
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named} <= exported


def test_the_dashboard_is_what_its_program_writes():
    pytest.importorskip("grafana_foundation_sdk")
    spec = importlib.util.spec_from_file_location("dashboard", DASHBOARD.with_name("dashboard.py"))
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert program.encode(program.build()) == DASHBOARD.read_text()


class Prometheus:
    """A Prometheus that scrapes as the example says, only elsewhere and more often."""

    def __init__(self, url: str, http: aiohttp.ClientSession) -> None:
        self._url = url
        self._http = http

    async def ask(self, path: str, **parameters: str) -> Any:
        async with self._http.get(f"{self._url}{path}", params=parameters) as response:
            said = await response.json()
        assert said["status"] == "success", said
        return said["data"]

    async def values(self, expression: str) -> list[float]:
        found = await self.ask("/api/v1/query", query=expression)
        return [float(series["value"][1]) for series in found["result"]]


async def is_ready(url: str, http: aiohttp.ClientSession) -> bool:
    try:
        async with http.get(f"{url}/-/ready") as response:
            return response.ok
    except aiohttp.ClientConnectionError:
        return False


@pytest.fixture
def scraped() -> int:
    """The port that the daemon shows its metrics on."""
    return free_port()


@pytest.fixture
async def prometheus(tmp_path, scraped):
    program = tool("prometheus")
    example = SCRAPE.read_text()
    settings = tmp_path / "prometheus.yml"
    settings.write_text(
        example.replace("127.0.0.1:9464", f"127.0.0.1:{scraped}").replace("15s", "1s")
    )
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        program,
        f"--config.file={settings}",
        f"--storage.tsdb.path={tmp_path / 'tsdb'}",
        f"--web.listen-address=127.0.0.1:{port}",
        "--log.level=error",
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as http:
            async with asyncio.timeout(WAIT_S):
                while not await is_ready(url, http):  # noqa: ASYNC110 - another process's event
                    await asyncio.sleep(0.1)
            yield Prometheus(url, http)
    finally:
        process.terminate()
        await process.wait()


@pytest.fixture
def moody(tmp_path) -> str:
    """A policy that fails where it is asked to, as `policy.path` wants it."""
    file = tmp_path / "moody.py"
    file.write_text(MOODY)
    return f"{file}:Moody"


@pytest.fixture
def on_battery(tmp_path) -> str:
    """The /sys of a device on battery."""
    battery = tmp_path / "sys" / "class" / "power_supply" / "BAT0"
    battery.mkdir(parents=True)
    for name, value in {"type": "Battery", "capacity": "80", "status": "Discharging"}.items():
        (battery / name).write_text(f"{value}\n")
    return str(tmp_path / "sys")


@pytest.fixture
async def daemon(configure, cloud, program, scraped, moody, on_battery):
    """A daemon on battery, near a cloud, with the moody policy."""
    settings = configure(
        cloud=cloud,
        device={"sysfs_root": on_battery},
        http={"listen": f"127.0.0.1:{scraped}"},
        policy={"path": moody},
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agent", "--config", str(settings), "run")
    )
    try:
        await program.status("online")
        yield
    finally:
        process.terminate()
        await process.wait()


async def test_every_panel_shows_what_happened(daemon, prometheus, program, digits):
    panels = [panel for panel in dashboard()["panels"] if panel["type"] != "row"]
    queries = {
        f"{panel['title']} {target['refId']}": chosen(target["expr"])
        for panel in panels
        for target in panel["targets"]
    }
    assert len(queries) > len(panels) > 20
    empty = set(queries)
    number = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_S):
            while empty:
                # Again and again, since a counter's rate can't be told from one scrape.
                number += 1
                await submit_all_kinds(program, digits, number)
                await asyncio.sleep(0.5)
                for name in sorted(empty):
                    values = await prometheus.values(queries[name])
                    if any(math.isfinite(value) for value in values):
                        empty.discard(name)
    assert not empty


async def submit_all_kinds(program, digits, number: int) -> None:
    """Submit jobs for both routes, a late one, one that the policy fails at, and no job at all."""
    jobs = {
        "local": {"placement": "only_local"},
        "cloud": {"placement": "only_cloud"},
        "late": {"deadline_ms": 0.01},
        "moody": {"priority": 0},
    }
    for kind, parameters in jobs.items():
        await program.submit("digits", digits.job(f"{kind}-{number}", **parameters))
    await program.submit("digits", b"no job")
    for kind in jobs:
        await program.answer(f"{kind}-{number}")


async def test_every_variable_of_the_dashboard_finds_its_values(
    daemon, prometheus, program, digits
):
    await submit_all_kinds(program, digits, 0)
    wanted = {v["name"]: v["query"]["query"] for v in variables() if v["type"] == "query"}
    assert list(wanted) == ["device", "instance", "model"]
    found: dict[str, list[str]] = {}
    async with asyncio.timeout(WAIT_S):
        while len(found) < len(wanted):
            for name, query in wanted.items():
                metric, label = re.fullmatch(r"label_values\((.+), (\w+)\)", chosen(query)).groups()
                values = await prometheus.ask(
                    f"/api/v1/label/{label}/values", **{"match[]": metric}
                )
                if values:
                    found[name] = values
            await asyncio.sleep(0.1)
    assert found["device"] == ["porch"]
    assert found["model"] == ["digits"]


def dashboard() -> dict[str, Any]:
    return json.loads(DASHBOARD.read_text())


def variables() -> list[dict[str, Any]]:
    return dashboard()["templating"]["list"]


def chosen(query: str) -> str:
    """The query as Grafana sends it when all devices are chosen."""
    for variable, value in CHOICES.items():
        query = query.replace(variable, value)
    assert "$" not in query
    return query
