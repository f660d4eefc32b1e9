"""What `make release` has left in dist/, which `make test-install` runs first."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.markers import Marker
from packaging.utils import canonicalize_name

import agent

pytestmark = [pytest.mark.install, pytest.mark.timeout(1800)]

ROOT = Path(__file__).parents[2]
DIST = ROOT / "dist"


@pytest.fixture(scope="module")
def bill() -> str:
    return (DIST / f"edgewise-{agent.__version__}.cdx.json").read_text()


def sums(folder: Path) -> dict[str, str]:
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    return {name: digest for digest, name in (line.split() for line in lines)}


def test_a_release_has_wheel_sdist_package_and_bill_with_their_sums():
    version = re.escape(agent.__version__)
    (package,) = DIST.glob("*.deb")
    assert sorted(re.sub(version, "V", name) for name in sums(DIST)) == [
        "edgewise-V-py3-none-any.whl",
        "edgewise-V.cdx.json",
        "edgewise-V.tar.gz",
        re.sub(version, "V", package.name),
    ]
    for name, digest in sums(DIST).items():
        assert hashlib.sha256((DIST / name).read_bytes()).hexdigest() == digest


def test_the_wheel_holds_what_the_daemon_runs():
    (wheel,) = DIST.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    for file in ("agent/store/schema.sql", "agent/web/static/page.html", "policies/adaptive.py"):
        assert file in names


def test_the_bill_of_materials_is_valid(bill):
    version = SchemaVersion.from_version(json.loads(bill)["specVersion"])
    assert JsonStrictValidator(version).validate_str(bill) is None


def test_the_bill_has_each_locked_dependency_of_this_python_and_edgewise_itself(bill):
    read = json.loads(bill)
    component = read["metadata"]["component"]
    assert (component["name"], component["version"]) == ("edgewise", agent.__version__)
    lock = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^([\w.-]+)==([^ ;\\]+)(?: ; ([^\\]+))?", lock, flags=re.MULTILINE)
    listed = {(canonicalize_name(c["name"]), c["version"]) for c in read["components"]}
    assert listed == {
        (canonicalize_name(name), version)
        for name, version, marker in pins
        if not marker or Marker(marker).evaluate()
    }


def test_the_same_commit_gives_the_same_release(tmp_path):
    program = Path(sys.executable).with_name("cyclonedx-py")
    subprocess.run(
        [ROOT / "deploy" / "make-release", tmp_path],
        check=True,
        capture_output=True,
        env=os.environ | {"CYCLONEDX": str(program)},
    )
    assert sums(tmp_path) == sums(DIST)
