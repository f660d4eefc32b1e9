"""A machine that boots a real systemd in a container."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

WAIT_S = 120.0  # on a busy machine installing takes that long
PAUSE_S = 0.1
PYTHON = "/usr/lib/edgewise/bin/python3"
GET = "import sys, urllib.request as u; sys.stdout.buffer.write(u.urlopen(sys.argv[1]).read())"
STATUS = """
import sys, urllib.error, urllib.request as u
asked = u.Request(sys.argv[1], headers=dict(h.split(": ") for h in sys.argv[2:]))
try:
    print(u.urlopen(asked).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


class Machine:
    """A booted machine, with a network that has nothing but its own loopback."""

    def __init__(self, root: Path, system: Path) -> None:
        """Set it up.

        Args:
            root: Where its file system will be; its last part is the machine's name.
            system: What that is in the beginning; changes go elsewhere.
        """
        self.root = root
        self._system = system
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._leader = ""

    def boot(self) -> None:
        changes, work = (self.root.with_suffix(suffix) for suffix in (".changes", ".work"))
        for folder in (self.root, changes, work):
            folder.mkdir()
        layers = f"lowerdir={self._system},upperdir={changes},workdir={work}"
        mount = ["mount", "--types=overlay", f"--options={layers}", "overlay", self.root]
        subprocess.run(mount, check=True)
        (self.root / "etc" / "machine-id").write_text("")
        command = [
            *("systemd-nspawn", "--quiet", f"--directory={self.root}", "--boot"),
            *("--private-network", "--register=no", "--keep-unit", "--console=pipe"),
            f"--machine={self.root.name}",
        ]
        with self.root.with_suffix(".log").open("wb") as console:
            self._nspawn = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT
            )
        until(self._is_up, f"{self.root.name} boots")

    def _is_up(self) -> bool:
        assert self._nspawn is not None
        assert self._nspawn.poll() is None, "systemd-nspawn ended"
        pid = self._nspawn.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return False
        self._leader = children[0]
        state = self.run("systemctl", "is-system-running", check=False).strip()
        return state in ("running", "degraded")

    def power_off(self) -> None:
        """End it, and forget what it changed."""
        if self._nspawn is not None and self._nspawn.poll() is None:
            self._nspawn.terminate()
            try:
                self._nspawn.wait(WAIT_S)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        if self.root.is_mount():
            subprocess.run(["umount", self.root], check=True)

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command as the machine's root."""
        return subprocess.Popen(
            ["nsenter", "--target", self._leader, "--all", *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND": "noninteractive"},
        )

    def run(self, *command: str, check: bool = True) -> str:
        """Run a command as the machine's root; give what it prints."""
        started = self.start(*command)
        out, err = started.communicate(timeout=2 * WAIT_S)
        assert not check or started.returncode == 0, f"{command}: {out}{err}"
        return out

    def network(self, *command: str) -> None:
        """Run a command of the host in the machine's network."""
        subprocess.run(["nsenter", "--target", self._leader, "--net", *command], check=True)

    def show(self, name: str, unit: str = "edgewise") -> str:
        """Give a property of a unit."""
        return self.run("systemctl", "show", unit, "--property", name, "--value").strip()

    def journal(self) -> str:
        return self.run("journalctl", "--unit=edgewise", "--output=cat", "--no-pager")

    def write(self, path: str, text: str) -> None:
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def get(self, path: str) -> str:
        return self.run(PYTHON, "-c", GET, f"http://127.0.0.1:9464{path}")

    def status_of(self, path: str, *headers: str) -> int:
        """Give the status that a request with these headers gets."""
        return int(self.run(PYTHON, "-c", STATUS, f"http://127.0.0.1:9464{path}", *headers))

    def metrics(self) -> dict[str, float]:
        """Give each series' value, summed over its labels."""
        values: dict[str, float] = {}
        for family in text_string_to_metric_families(self.get("/metrics")):
            for sample in family.samples:
                values[sample.name] = values.get(sample.name, 0.0) + sample.value
        return values

    def submit(self, *files: str) -> list[dict[str, Any]]:
        """Have images of digits classified, by way of the broker."""
        return self.answers(self.start("edgewise", "submit", "digits", *files, "--json"))

    def answers(self, submitting: subprocess.Popen[str]) -> list[dict[str, Any]]:
        """Wait for the end of `edgewise submit --json`; give what it prints."""
        out, err = submitting.communicate(timeout=2 * WAIT_S)
        assert out, err
        return json.loads(out)

    def topic(self, name: str) -> str:
        return f"edgewise/v1/{self.run('hostname').strip()}/{name}"

    def is_active(self) -> bool:
        return self.show("ActiveState") == "active"


def until(condition: Callable[[], object], what: str) -> None:
    """Wait until the condition holds: the machine is looked at from outside, it sends no word."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, f"in vain: {what}"
        time.sleep(PAUSE_S)
