"""Every command and every configuration that a page shows is run, or says why it is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tomllib
from configparser import ConfigParser
from pathlib import Path

import msgspec
import pytest
from pages.markdown import REASONS, ROOT, Block, blocks, pages
from pages.stages import PLAIN, STAGES
from pages.terminal import Terminal, need

from agent import plugins
from agent.config import Config, load

PAGES = pages()
BLOCKS = [block for page in PAGES for block in blocks(page)]
COMMANDS = ("console", "sh")
SECTIONS = {field.name for field in msgspec.structs.fields(Config)}
# Each has a test below.
KNOWN = {*COMMANDS, "toml", "json", "python", "ini", "text"}
# What a fragment of a configuration is put beside: the endpoints that fragments speak of.
BASE = """
[endpoints.lab]
url = "http://127.0.0.1:8080"

[endpoints.llm]
url = "http://127.0.0.1:8081"
protocol = "openai"
"""


def of(*languages: str) -> list[Block]:
    return [block for block in BLOCKS if block.language in languages]


def is_followed(block: Block) -> bool:
    return not block.not_run and (block.language in COMMANDS or block.saved_as is not None)


FOLLOWED = sorted({block.page for block in of(*COMMANDS) if not block.not_run})


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", FOLLOWED)
def test_a_page_can_be_followed_from_top_to_bottom(page, tmp_path):
    need("unshare", "ip", "mosquitto", "mosquitto_pub", "openssl", "prometheus", "curl")
    stage = STAGES.get(page, PLAIN)
    if stage.as_root and os.geteuid() != 0:
        pytest.skip("giving files to another user takes root")
    with Terminal(tmp_path, in_clone=stage.in_clone) as terminal:
        for set_up in stage.set_up:
            set_up(terminal)
        for block in blocks(page):
            if is_followed(block):
                terminal.follow(block)


def test_every_stage_is_that_of_a_page():
    assert set(STAGES) <= set(FOLLOWED)


def test_every_block_is_of_a_kind_that_is_tested():
    assert [f"{block}: {block.language}" for block in BLOCKS if block.language not in KNOWN] == []


def test_what_is_not_run_says_why():
    """And only commands can be left out."""
    reasons = {block.not_run for block in BLOCKS if block.not_run}
    assert reasons <= set(REASONS), reasons
    assert all(block.language in COMMANDS for block in BLOCKS if block.not_run)


@pytest.mark.parametrize("block", [b for b in of(*COMMANDS) if b.not_run], ids=str)
def test_commands_that_are_not_run_are_well_formed_at_least(block):
    script = re.sub(r"^\$ ", "", block.text, flags=re.MULTILINE)
    read = subprocess.run(["bash", "-n"], input=script, text=True, capture_output=True, check=False)
    assert (read.returncode, read.stderr) == (0, "")
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z][\w-]*)", script)) <= targets
    named = re.findall(r"(?<![\w./~-])((?:deploy|systemd|docs|examples|bench)/[\w./-]+)", script)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("block", of("toml"), ids=str)
def test_a_configuration_is_accepted(block, tmp_path):
    """A fragment counts as a file in edgewise.d, beside one that has the endpoints it may name.

    A file of another kind, such as a pyproject.toml, has a page that uses it.
    """
    if block.saved_as is not None and not set(tomllib.loads(block.text)) <= SECTIONS:
        assert block.page in FOLLOWED
        return
    main = tmp_path / "edgewise.toml"
    main.write_text(BASE)
    (tmp_path / "edgewise.d").mkdir()
    (tmp_path / "edgewise.d" / "fragment.toml").write_text(block.text)
    config = load(main, environ={})
    # Others are of the page's own making, which installs or loads them.
    if config.policy.path is None and config.policy.name in {p.name for p in plugins.available()}:
        plugins.load(config.policy)
        plugins.load_shadows(config.policy)


@pytest.mark.parametrize("block", of("json"), ids=str)
def test_json_can_be_read(block):
    json.loads(block.text)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_python_is_well_formed_and_used_by_its_page(block):
    compile(block.text, str(block), "exec")
    assert block.saved_as is not None, "it is run by nothing"
    assert block.page in FOLLOWED


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_systemd_takes_a_drop_in(block, tmp_path):
    need("systemd-analyze")
    unit = tmp_path / "edgewise.service"
    shutil.copy(ROOT / "systemd" / "edgewise.service", unit)
    text = re.sub("^ExecStart=.*", "ExecStart=/bin/true", unit.read_text(), flags=re.MULTILINE)
    unit.write_text(text)
    (tmp_path / "edgewise.service.d").mkdir()
    (tmp_path / "edgewise.service.d" / "override.conf").write_text(block.text)
    assert ConfigParser(strict=False, interpolation=None).read_string(block.text) is None
    ended = subprocess.run(
        ["systemd-analyze", "verify", unit], capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_a_drawing_names_files_that_are_there(block):
    named = re.findall(r"(?:agent|policies|tests|deploy)/[\w/]+(?:\.\w+)?", block.text)
    assert [path for path in named if not Path(ROOT, path).exists()] == []


def test_each_source_of_the_maths_is_named_where_it_is_used():
    rows = (ROOT / "docs" / "how-it-decides.md").read_text().split("\n## Sources\n")[1].splitlines()
    checked = 0
    for row in rows:
        files = re.findall(r"`([\w/]+\.py)`", row)
        authors = re.findall(r"([A-ZÀ-Þ]\w+)(?: et al\.| and [A-Z]\w+)? \d{4}", row)
        code = "".join((ROOT / file).read_text() for file in files)
        assert [author for author in authors if author not in code] == [], row
        checked += len(authors)
    assert checked > 20


def test_the_layers_in_the_architecture_are_those_that_are_checked():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    shown = [block.text.splitlines() for block in blocks("docs/architecture.md")]
    assert layers in shown
