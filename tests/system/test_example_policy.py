"""A policy as a package: the one under examples/."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
EXAMPLE = PROJECT / "examples" / "edgewise-policy-daylight"
FEW = ("--jobs", "poisson:deferrable=0.5,deadline_ms=60000,count=40")

# Builds fetch hatchling from the index, as for any user.
pytestmark = pytest.mark.timeout(300)


class Shell:
    """A folder, and a virtual environment that has all that this one has, Edgewise included.

    What is installed there stays there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "here"
        self.folder.mkdir()
        venv = folder / "venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", venv], check=True)
        purelib = sysconfig.get_path("purelib", "venv", {"base": str(venv)})
        seen = f"import site; site.addsitedir({sysconfig.get_path('purelib')!r})\n"
        Path(purelib, "all-of-ours.pth").write_text(seen)
        for command, module in {"edgewise": "agent", "pip": "pip"}.items():
            script = venv / "bin" / command
            script.write_text(f'#!/bin/sh\nexec "{venv}/bin/python" -m {module} "$@"\n')
            script.chmod(0o755)
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("EDGEWISE_", "PYTEST_"))}
        self._environment = {
            **kept,
            "PATH": f"{venv}/bin:{kept['PATH']}",
            "PIP_DISABLE_PIP_VERSION_CHECK": "1",
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # of ours; a stranger has none
        }

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a line of shell to its end."""
        return subprocess.run(
            command,
            check=False,
            shell=True,
            cwd=self.folder,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def done(self, command: str) -> str:
        """Run one that must not fail; give what it prints."""
        ended = self.run(command)
        assert ended.returncode == 0, f"{command}: {ended.stdout}{ended.stderr}"
        return ended.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A shell in a copy of the example, where it is installed."""
    shell = Shell(tmp_path_factory.mktemp("example"))
    leave = shutil.ignore_patterns("__pycache__", ".*", "dist")
    shutil.copytree(EXAMPLE, shell.folder, ignore=leave, dirs_exist_ok=True)
    shell.done("pip install --quiet .")
    return shell


def test_it_is_listed_with_its_summary_source_and_options(installed):
    listed = {info["name"]: info for info in json.loads(installed.done("edgewise policies --json"))}
    assert listed["daylight"]["source"] == "edgewise-policy-daylight"
    assert listed["daylight"]["summary"].startswith("Takes the quickest route by day")
    assert listed["daylight"]["options"] == {
        "full_above": 0.9,
        "look_again_s": 300.0,
        "run_before_s": 30.0,
    }
    assert listed["threshold"]["source"] == "edgewise"


def test_a_configuration_may_name_it_with_options(installed):
    (block,) = re.findall(r"```toml\n(.*?)```", (EXAMPLE / "README.md").read_text(), re.DOTALL)
    (installed.folder / "edgewise.toml").write_text(block)
    assert ": fine;" in installed.done("edgewise check --config edgewise.toml")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("full_abov = 0.5", "policy.options.full_abov: unknown option, known: full_above"),
        ('look_again_s = "soon"', "policy.options.look_again_s: Expected `float`"),
        ("full_above = 2.0", "policy.options: full_above must be a ratio"),
    ],
)
def test_an_option_that_does_not_fit_is_refused_by_its_key(installed, option, says):
    wrong = f'[policy]\nname = "daylight"\noptions = {{{option}}}\n'
    (installed.folder / "wrong.toml").write_text(wrong)
    ended = installed.run("edgewise check --config wrong.toml")
    assert ended.returncode == 78
    assert f"wrong.toml: {says}" in ended.stderr


def test_it_runs_in_a_simulation_with_options_and_has_jobs_wait_on_the_battery(installed):
    policies = ("daylight:run_before_s=20", "daylight:full_above=0")
    asked = " ".join((*FEW, *(f"--policy {policy}" for policy in policies)))
    ended = installed.run(f"edgewise simulate --profile pi4 {asked} --json")
    assert (ended.returncode, ended.stderr) == (0, "")
    by_night, by_day = (json.loads(ended.stdout)["policies"][policy] for policy in policies)
    assert (by_night["deadline_misses"], by_day["deadline_misses"]) == (0, 0)
    # Those that may wait, half of them, do so until 20 s before their deadline of 60 s.
    assert 40_000 <= by_night["p95_ms"] < 60_000
    assert by_day["p95_ms"] < 1_000


def test_its_own_tests_pass(installed):
    told = installed.done("python -W error -m pytest -p no:cacheprovider --quiet")
    assert re.search(r"^\d+ passed", told, re.MULTILINE)
