"""A machine that boots a real systemd, and the package that is installed on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from booted import Machine

ROOT = Path(__file__).parents[2]
SUITE = "bookworm"
BUILT = ROOT / "build" / f"rootfs-{SUITE}"
PACKAGES = "systemd,systemd-sysv,dbus,python3,mosquitto,mosquitto-clients"
PACKAGES += ",libnss-systemd,libpam-systemd,network-manager,procps"


@pytest.fixture(scope="session")
def system() -> Path:
    """A file system of Debian with systemd, a broker and NetworkManager; made once and kept."""
    assert os.geteuid() == 0, "make test-install needs root"
    for program in ("debootstrap", "systemd-nspawn"):
        assert shutil.which(program), f"needs {program}"
    if not BUILT.exists():
        unfinished = BUILT.with_suffix(".unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.parent.mkdir(exist_ok=True)
        made = subprocess.run(
            ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, unfinished],
            capture_output=True,
            text=True,
            check=False,
        )
        assert made.returncode == 0, made.stdout[-2000:] + made.stderr
        subprocess.run(["chroot", unfinished, "apt-get", "clean"], check=True)
        # It kept services from starting while there was no systemd.
        (unfinished / "usr/sbin/policy-rc.d").unlink(missing_ok=True)
        subprocess.run(
            ["systemctl", f"--root={unfinished}", "enable", "NetworkManager"],
            check=True,
            capture_output=True,
        )
        unfinished.rename(BUILT)
    return BUILT


@pytest.fixture(scope="session")
def package() -> Path:
    """The package, as `make deb` leaves it."""
    (built,) = (ROOT / "dist").glob("edgewise_*.deb")
    return built


@pytest.fixture(scope="session")
def memory() -> Path:
    """A folder in memory: what only these tests need is never synced to a disk."""
    # Podman wants short paths.
    folder = Path(tempfile.mkdtemp(prefix="edgewise-"))
    subprocess.run(["mount", "--types=tmpfs", "edgewise-tests", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)
    folder.rmdir()


@pytest.fixture(scope="session")
def boot(system, memory):
    """Boot a machine of its own name, with a file system of its own."""
    machines = []

    def start(name: str) -> Machine:
        machine = Machine(memory / name, system)
        machines.append(machine)
        machine.boot()
        return machine

    yield start
    for machine in machines:
        machine.power_off()


@pytest.fixture(scope="session")
def install(package):
    def put(machine: Machine, file: Path = package) -> str:
        shutil.copy(file, machine.root / "root" / "edgewise.deb")
        return machine.run("dpkg", "--force-confdef", "--install", "/root/edgewise.deb")

    return put
