"""What an operator installs: the unit, the configuration, dashboards and alerts."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from agent import config, plugins
from agent.config import Endpoint, Model, Mqtt, load
from agent.daemon import Daemon

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "systemd" / "edgewise.service"
INSTANCES = ROOT / "systemd" / "edgewise@.service"
EXAMPLE = ROOT / "deploy" / "edgewise.toml"
SCRAPE = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTS = SCRAPE.with_name("alerts.yml")
CASES = SCRAPE.with_name("alerts_test.yml")
COMPOSE = ROOT / "deploy" / "compose.yaml"
RUNBOOK = ROOT / "docs" / "runbook.md"
DASHBOARDS = [
    ROOT / "deploy" / "grafana" / name for name in ("edgewise.json", "edgewise-fleet.json")
]
MAX_EXPOSURE = 1.1  # systemd's measure: 0 is closed, 10 wide open


def tool(name: str) -> str:
    """Give the path of a program that not every machine has, but CI does."""
    found = shutil.which(name)
    if found is None:
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"needs {name}")
    return found


# The unit


@pytest.fixture(params=[UNIT, INSTANCES], ids=lambda file: file.name)
def unit(request, tmp_path) -> Path:
    """A unit, with a program that is on this machine."""
    installed = tmp_path / request.param.name.replace("@", "@porch")
    program = r"^ExecStart=\S+"
    text = re.sub(
        program, f"ExecStart={sys.executable}", request.param.read_text(), flags=re.MULTILINE
    )
    installed.write_text(text)
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


def test_an_instance_differs_from_the_service_in_its_own_names_only():
    one, many = (file.read_text().splitlines() for file in (UNIT, INSTANCES))
    assert [line for line in one if line not in many] == [
        "Description=Edgewise, routes inference jobs to this device or to the cloud",
        "StateDirectory=edgewise",
        "ConfigurationDirectory=edgewise",
        "#LoadCredential=mqtt-password:/etc/edgewise/credentials/mqtt-password",
        "#LoadCredential=lab-token:/etc/edgewise/credentials/lab-token",
    ]
    own = [line for line in many if line not in one and not line.startswith("# ")]
    assert all("%i" in line for line in own), own


# What is installed with it


def test_the_lock_has_each_dependency_at_a_version_that_is_allowed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["rules"], *extras["zstd"]]
    lock = (ROOT / "requirements.lock").read_text()
    locked: dict[str, list[str]] = {}
    for name, version in re.findall(r"^([\w.-]+)==([^ ;]+)", lock, flags=re.MULTILINE):
        locked.setdefault(canonicalize_name(name), []).append(version)
    for requirement in map(Requirement, wanted):
        versions = locked[canonicalize_name(requirement.name)]
        assert all(version in requirement.specifier for version in versions), requirement


def test_every_locked_version_has_hashes():
    for file in ("requirements.lock", "requirements-build.lock"):
        lock = (ROOT / file).read_text()
        pins = re.findall(r"^[\w.-]+==.*\n(    --hash=sha256:)?", lock, flags=re.MULTILINE)
        assert pins
        assert all(pins), file


# The configuration


# The example's certificates are for this only.
SECURED = {
    "EDGEWISE_MQTT__URL": "mqtts://127.0.0.1",
    "EDGEWISE_TRACING__ENDPOINT": "https://127.0.0.1:4318",
}


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
    loaded = load(uncommented, environ=SECURED)
    pairs = [(getattr(loaded, name), kind) for name, kind in sections().items()]
    pairs.append((loaded.models["vibration"], Model))
    pairs.append((loaded.models["digits"].preprocess, config.ImageInput))
    pairs.append((loaded.endpoints["lab"], Endpoint))
    for section, kind in pairs:
        for field in msgspec.structs.fields(kind):
            # Where there is no default, the example shows an example.
            if field.default not in (msgspec.NODEFAULT, None, "", (), Mqtt().url):
                assert getattr(section, field.name) == field.default, field.name


def test_the_examples_policy_options_are_the_policys_defaults(uncommented):
    policy = msgspec.structs.replace(load(uncommented, environ=SECURED).policy, path=None)
    plugins.load(policy)
    (known,) = [info for info in plugins.available() if info.name == policy.name]
    assert policy.options == known.options


def sections() -> dict[str, Any]:
    """The sections that are not tables of named things."""
    fields = msgspec.structs.fields(config.Config)
    return {f.name: f.type for f in fields if f.name not in ("models", "endpoints")}


def keys(kind: type[msgspec.Struct]) -> list[str]:
    return [field.name for field in msgspec.structs.fields(kind)]


# What Prometheus and Grafana read


def test_promtool_accepts_the_scrape_example_and_its_alerts():
    ended = subprocess.run(
        [tool("promtool"), "check", "config", SCRAPE], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_the_scrape_example_reads_where_the_daemon_listens():
    assert f'targets: ["{config.Http().listen}"]' in SCRAPE.read_text()


def test_every_alert_fires_and_does_not_in_the_cases_for_it():
    ended = subprocess.run(
        [tool("promtool"), "test", "rules", CASES], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    cases = [case for test in yaml.safe_load(CASES.read_text())["tests"] for case in verdicts(test)]
    for alert in (rule["alert"] for rule in rules()):
        assert {fires for name, fires in cases if name == alert} == {True, False}, alert


def verdicts(test: dict[str, Any]) -> list[tuple[str, bool]]:
    """Each alert that a test's cases name, and whether it fires in one of them."""
    by_name: dict[str, bool] = {}
    for case in test["alert_rule_test"]:
        name = case["alertname"]
        by_name[name] = by_name.get(name, False) or bool(case["exp_alerts"])
    return list(by_name.items())


def test_every_alert_has_its_section_in_the_runbook():
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), flags=re.MULTILINE)
    assert headings == [rule["alert"] for rule in rules()]
    for rule in rules():
        anchor = f"docs/runbook.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == anchor


def rules() -> list[dict[str, Any]]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return group["rules"]


@pytest.mark.parametrize("file", [*DASHBOARDS, ALERTS], ids=lambda file: file.name)
def test_dashboards_and_alerts_name_only_metrics_that_the_daemon_exports(configure, file):
    config = load(configure(), environ={})
    exported = {family.name for family in Daemon(config, lambda: config).metrics.registry.collect()}
    named = set(re.findall(r"\bedgewise_\w+|\bprocess_\w+", file.read_text()))
    # A family's name is without what its kind adds to its series'.
    assert {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in named} <= exported


def test_every_metric_is_on_a_dashboard(configure):
    config = load(configure(), environ={})
    exported = {family.name for family in Daemon(config, lambda: config).metrics.registry.collect()}
    text = "".join(file.read_text() for file in DASHBOARDS)
    assert {name for name in exported if name not in text} == {
        # For whoever looks closer.
        "edgewise_energy_measured",
        "edgewise_jobs_deferred",
        "process_max_fds",
        "process_open_fds",
        "process_virtual_memory_bytes",
    }


def test_the_dashboards_are_what_their_program_writes(tmp_path):
    pytest.importorskip("grafana_foundation_sdk")
    program = DASHBOARDS[0].with_name("generate.py")
    subprocess.run([sys.executable, "-B", program, tmp_path], check=True)
    for file in DASHBOARDS:
        assert (tmp_path / file.name).read_text() == file.read_text()


def test_every_panel_says_what_it_shows():
    for file in DASHBOARDS:
        for panel in json.loads(file.read_text())["panels"]:
            assert panel["type"] in ("row", "text") or len(panel["description"]) > 20, panel[
                "title"
            ]


# Everything at once


@pytest.fixture
def services() -> dict[str, Any]:
    return yaml.safe_load(COMPOSE.read_text())["services"]


def mounts(services: dict[str, Any]) -> list[tuple[str, Path, str]]:
    """Each file or folder of the project that a service sees: service, here, and there."""
    found = []
    for name, service in services.items():
        for volume in service.get("volumes", ()):
            here, there, *_ = volume.split(":")
            if here.startswith("."):
                found.append((name, (COMPOSE.parent / here).resolve(), there))
    return found


def test_compose_mounts_and_builds_what_is_there_and_names_what_it_has(services):
    kept = yaml.safe_load(COMPOSE.read_text())["volumes"]
    for name, here, _ in mounts(services):
        assert here.exists(), f"{name}: {here}"
    for name, service in services.items():
        assert service["image"], name
        assert service.get("build", "..") == "..", name
        assert set(service.get("depends_on", ())) <= set(services), name
        named = {v.partition(":")[0] for v in service.get("volumes", ()) if not v.startswith(".")}
        assert named <= set(kept), name
        # Nobody needs a password, so nobody else is let in.
        assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ())), name


def test_compose_gives_the_daemon_a_configuration_that_it_accepts(services, tmp_path):
    seen = {there: here for name, here, there in mounts(services) if name == "edgewise"}
    text = seen["/etc/edgewise/edgewise.toml"].read_text()
    written = tmp_path / "edgewise.toml"
    written.write_text(text.replace("/models", str(seen["/models"])))
    config = load(written, environ={"EDGEWISE_DEVICE__STATE_DIR": str(tmp_path)})
    Daemon(config, lambda: config)
    assert config.mqtt.url == "mqtt://mosquitto:1883"
    assert config.endpoints["lab"].url == f"http://cloud:{services['cloud']['entrypoint'][3]}"
    assert Path(config.models["digits"].path).exists()


def test_compose_gives_prometheus_a_configuration_that_promtool_accepts(services, tmp_path):
    folder = "/etc/prometheus"
    for name, here, there in mounts(services):
        if name == "prometheus" and Path(there).parent == Path(folder):
            shutil.copy(here, tmp_path / Path(there).name)
    ended = subprocess.run(
        [tool("promtool"), "check", "config", tmp_path / "prometheus.yml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_grafana_finds_its_dashboards_and_its_source_where_compose_puts_them(services):
    seen = {there: here for name, here, there in mounts(services) if name == "grafana"}
    provisioning = seen["/etc/grafana/provisioning"]
    (provider,) = yaml.safe_load((provisioning / "dashboards" / "edgewise.yaml").read_text())[
        "providers"
    ]
    there = {Path(path) for path in seen if path.endswith(".json")}
    assert {path.parent for path in there} == {Path(provider["options"]["path"])}
    assert {path.name for path in there} == {file.name for file in DASHBOARDS}
    home = services["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home) in there
    (source,) = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "http://prometheus:9090")


def test_the_reference_names_every_metric_and_no_other(configure):
    config = load(configure(), environ={})
    families = list(Daemon(config, lambda: config).metrics.registry.collect())
    own = {f.name for f in families if f.name.startswith("edgewise_")}
    text = (ROOT / "docs" / "metrics.md").read_text()
    assert {name.removesuffix("_total") for name in re.findall(r"`(edgewise_\w+)`", text)} == own


def test_the_runbook_names_panels_that_are_there():
    dashboards = [json.loads(file.read_text()) for file in DASHBOARDS]
    there = {panel.get("title") for content in dashboards for panel in content["panels"]}
    there |= {content["title"] for content in dashboards}
    named = re.findall(r'"([^"]+)"', RUNBOOK.read_text().replace("\n", " "))
    assert named
    assert set(named) <= there
