"""The reference pages are what the program's own types say."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pages.markdown import ROOT

REFERENCE = ROOT / "docs" / "reference"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reference")
    subprocess.run([sys.executable, "-B", REFERENCE / "generate.py", folder], check=True)
    return folder


def test_the_reference_is_what_its_program_writes(written):
    """If not: `make docs`."""
    assert {file.name for file in written.iterdir()} == {
        file.name for file in REFERENCE.glob("*.md")
    }
    for file in written.iterdir():
        assert (REFERENCE / file.name).read_text() == file.read_text(), file.name
