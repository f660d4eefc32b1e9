"""The package on a machine that boots: installed, at work, upgraded, removed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from booted import Machine, until

pytestmark = [pytest.mark.install, pytest.mark.timeout(900)]

DATA = "/usr/lib/edgewise/lib/python3.11/site-packages/agent/demo/data"
IMAGES = f"{DATA}/images"
DEVICE = Path(__file__).parents[1] / "fixtures" / "devices" / "raspberry_pi_ups"
CONFIG = f"""
[models.digits]
path = "{DATA}/digits_small.tflite"
labels = "{DATA}/digits.labels.txt"
[models.digits.preprocess]
kind = "image"
"""
# The machine has no battery of its own.
BATTERY = '[device]\nsysfs_root = "/usr/share/device/sys"\n'
LINK = ("ifname", "v0", "ip4", "192.0.2.2/24", "gw4", "192.0.2.1", "connection.metered", "yes")
SHORT = "[Service]\nWatchdogSec=2s\n"
JOBS = 64  # as many as `edgewise submit` has under way at a time
DROP_INS = "/etc/systemd/system/edgewise.service.d"


@pytest.fixture(scope="module")
def machine(boot, install) -> Machine:
    """A machine with the package, as an operator has set it up."""
    machine = boot("device")
    install(machine)
    shutil.copytree(DEVICE / "sys", machine.root / "usr/share/device/sys", symlinks=True)
    machine.write("/etc/edgewise/edgewise.toml", CONFIG)
    machine.run("systemctl", "restart", "edgewise")
    return machine


@pytest.fixture(scope="module")
def fresh(boot, install) -> Machine:
    """A machine with the package, as it is right after the installation; removal comes last."""
    machine = boot("fresh")
    install(machine)
    return machine


@pytest.fixture
def drop_in(machine):
    """Put a drop-in beside the unit, until the test ends."""

    def put(text: str) -> None:
        machine.write(f"{DROP_INS}/test.conf", text)
        machine.run("systemctl", "daemon-reload")
        machine.run("systemctl", "restart", "edgewise")

    yield put
    (machine.root / DROP_INS.lstrip("/") / "test.conf").unlink()
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "edgewise")


def images(machine: Machine) -> list[str]:
    there = sorted((machine.root / IMAGES.lstrip("/")).glob("*.png"))
    return [f"{IMAGES}/{file.name}" for file in there]


# At work


def test_a_job_that_comes_over_mqtt_is_answered(machine):
    (answer,) = machine.submit(images(machine)[0])
    assert answer["parameters"]["route"] == "local"


def test_the_status_shows_routes_and_backlog(machine):
    assert machine.show("StatusText") == "0 unfinished; local: 0 running, 0 waiting"


def test_the_process_has_no_privileges(machine):
    pid = machine.show("MainPID")
    lines = machine.run("cat", f"/proc/{pid}/status").splitlines()
    status = {name: value.strip() for name, value in (line.split(":", 1) for line in lines)}
    assert status["NoNewPrivs"] == "1"
    assert status["CapEff"] == status["CapBnd"] == "0" * 16
    assert status["Seccomp"] == "2"
    assert "0" not in status["Uid"].split()
    assert machine.run("stat", "--format=%a", "/var/lib/private/edgewise").strip() == "700"


def test_battery_heat_and_load_are_read_under_the_unit(machine):
    machine.write("/etc/edgewise/edgewise.toml", CONFIG + BATTERY)
    machine.run("systemctl", "restart", "edgewise")
    until(lambda: "edgewise_cpu_utilization_ratio" in machine.metrics(), "a first reading")
    metrics = machine.metrics()
    assert 0 < metrics["edgewise_battery_charge_ratio"] <= 1
    assert metrics["edgewise_cpu_temperature_celsius"] > 0
    assert metrics["edgewise_memory_available_bytes"] > 0
    machine.write("/etc/edgewise/edgewise.toml", CONFIG)
    machine.run("systemctl", "restart", "edgewise")


def test_networkmanager_is_asked_under_the_unit(machine):
    machine.network("ip", "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    machine.network("ip", "link", "set", "v1", "up")
    machine.run("nmcli", "connection", "add", "type", "ethernet", "con-name", "lab", *LINK)
    machine.run("nmcli", "connection", "up", "lab")
    until(lambda: machine.metrics().get("edgewise_network_metered") == 1, "a metered link")
    machine.run("nmcli", "connection", "modify", "lab", "connection.metered", "no")
    machine.run("nmcli", "device", "reapply", "v0")
    until(lambda: machine.metrics().get("edgewise_network_metered") == 0, "a link that is not")


def test_secrets_come_as_credentials(machine, drop_in):
    machine.write("/etc/edgewise/credentials/http-token", "SECRET-TOKEN\n")
    (machine.root / "etc/edgewise/credentials/http-token").chmod(0o600)
    drop_in(
        "[Service]\n"
        "LoadCredential=http-token:/etc/edgewise/credentials/http-token\n"
        "Environment=EDGEWISE_HTTP__TOKEN_FILE=%d/http-token\n"
    )
    assert machine.status_of("/metrics") == 401
    assert machine.status_of("/metrics", "Authorization: Bearer SECRET-TOKEN") == 200


def test_a_reload_takes_a_new_configuration_and_keeps_the_process(machine):
    pid = machine.show("MainPID")
    machine.write("/etc/edgewise/edgewise.toml", CONFIG + '[policy]\nname = "local"\n')
    machine.run("systemctl", "reload", "edgewise")
    until(lambda: '"event":"reloaded"' in machine.journal(), "the reload")
    (answer,) = machine.submit(images(machine)[0])
    assert answer["parameters"]["policy"] == "local"
    assert machine.show("MainPID") == pid


def test_a_bad_configuration_is_not_tried_again(machine):
    machine.write("/etc/edgewise/edgewise.toml", CONFIG + "[device2]\n")
    machine.run("systemctl", "restart", "edgewise", check=False)
    until(lambda: machine.show("ActiveState") == "failed", "the unit fails")
    assert machine.show("ExecMainStatus") == "78"
    assert "device2" in machine.journal()
    machine.write("/etc/edgewise/edgewise.toml", CONFIG)
    machine.run("systemctl", "start", "edgewise")


# Killed and hung


def test_kill_9_loses_no_job(machine):
    machine.run("systemctl", "restart", "edgewise")
    before = int(machine.show("NRestarts"))
    pause = ("-t", machine.topic("control/pause"), "-m", "{}")
    machine.run("mosquitto_pub", "-h", "127.0.0.1", "-q", "1", *pause)
    until(lambda: machine.metrics()["edgewise_paused"] == 1, "the pause")
    files = images(machine)[:JOBS]
    submitting = machine.start("edgewise", "submit", "digits", *files, "--json")
    until(lambda: f"{JOBS} unfinished; " in machine.show("StatusText"), "all jobs are on disk")
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=KILL", "edgewise")
    answers = machine.answers(submitting)
    assert len(answers) == JOBS
    assert [answer for answer in answers if "error" in answer] == []
    assert int(machine.show("NRestarts")) == before + 1
    assert machine.is_active()


def test_a_hung_process_is_restarted_by_the_watchdog_and_loses_no_job(machine, drop_in):
    drop_in(SHORT)
    hung = machine.show("MainPID")
    machine.run("kill", "-STOP", hung)
    (answer,) = machine.submit(images(machine)[0])
    assert "error" not in answer
    assert machine.show("MainPID") != hung
    assert "Watchdog timeout" in machine.journal()


HANGING = """
import pathlib, signal, time
from policies.fixed import Local

class Once(Local):
    '''Keeps the event loop from turning, once, and the guard of policies from ending that.'''

    def decide(self, situation):
        mark = pathlib.Path("/var/lib/edgewise/hung-once")
        if not mark.exists():
            mark.touch()
            signal.signal(signal.SIGALRM, signal.SIG_IGN)
            while True:
                time.sleep(1)
        return super().decide(situation)
"""


def test_a_hung_event_loop_is_restarted_by_the_watchdog_and_says_where_it_hung(machine, drop_in):
    machine.write("/etc/edgewise/hanging.py", HANGING)
    text = CONFIG + '[policy]\npath = "/etc/edgewise/hanging.py:Once"\n'
    machine.write("/etc/edgewise/edgewise.toml", text)
    try:
        drop_in(SHORT)
        (answer,) = machine.submit(images(machine)[0])
        assert "error" not in answer
        assert int(machine.show("NRestarts")) >= 1
        assert re.search(r'File "/etc/edgewise/hanging.py", line \d+ in decide', machine.journal())
    finally:
        machine.write("/etc/edgewise/edgewise.toml", CONFIG)


# Installed, upgraded, removed


def test_the_service_is_active_and_enabled_once_the_package_is_installed(fresh):
    assert fresh.is_active()
    assert fresh.run("systemctl", "is-enabled", "edgewise").strip() == "enabled"
    assert fresh.get("/healthz")


def test_an_upgrade_keeps_configuration_and_state(machine, install, package, tmp_path):
    (answer,) = machine.submit(images(machine)[0])
    pid = machine.show("MainPID")
    install(machine, newer(package, tmp_path))
    assert machine.run("dpkg-query", "--show", "--showformat=${Version}", "edgewise").endswith("+1")
    until(machine.is_active, "the service is up again")
    assert machine.show("MainPID") != pid
    written = (machine.root / "etc/edgewise/edgewise.toml").read_text()
    assert written == CONFIG
    assert answer["id"] in machine.run("edgewise", "explain", answer["id"])


def newer(package: Path, folder: Path) -> Path:
    """The package again with a higher version and another default configuration."""
    tree = folder / "tree"
    subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
    control = tree / "DEBIAN/control"
    control.write_text(re.sub(r"(?m)^(Version: .*)$", r"\1+1", control.read_text()))
    with (tree / "etc/edgewise/edgewise.toml").open("a") as config:
        config.write("# New.\n")
    built = folder / "newer.deb"
    subprocess.run(["dpkg-deb", "-Znone", "--build", tree, built], check=True)
    return built


def test_removal_leaves_no_process_and_purge_leaves_nothing(fresh):
    fresh.write("/etc/edgewise/porch/edgewise.toml", '[http]\nlisten = "127.0.0.1:9465"\n')
    fresh.run("systemctl", "enable", "--now", "edgewise@porch")
    assert fresh.is_active()
    assert fresh.show("ActiveState", "edgewise@porch") == "active"
    assert fresh.run("pgrep", "--full", "edgewise run").split() != []
    fresh.run("dpkg", "--remove", "edgewise")
    assert fresh.run("pgrep", "--full", "edgewise", check=False) == ""
    assert (fresh.root / "etc/edgewise/edgewise.toml").exists()
    assert (fresh.root / "var/lib/private/edgewise").exists()
    fresh.run("dpkg", "--purge", "edgewise")
    left = fresh.run("find", "/", "-xdev", "-path", "/proc", "-prune", "-o", "-name", "*edgewise*")
    kept = "/root/edgewise.deb"
    assert [path for path in left.split() if path != kept and not path.startswith("/proc")] == []
