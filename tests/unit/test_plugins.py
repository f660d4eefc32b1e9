"""Policies are found by entry point or by path, and refused where they are not safe or not fit."""

from __future__ import annotations

import pytest

from agent import plugins
from agent.config import ConfigError, Policy
from policies.threshold import Threshold

MINE = '''
from dataclasses import dataclass
from policies.api import Plan

class Mine:
    """Takes the first route.

    More of it.
    """

    @dataclass(frozen=True)
    class Options:
        ratio: float
        words: tuple[str, ...] = ()

        def __post_init__(self):
            if self.ratio > 1:
                raise ValueError("ratio must be a ratio, 0 to 1")

    def __init__(self, options):
        self.options = options

    def decide(self, situation):
        return Plan(situation.open_routes[0].name)

class Bare:
    def decide(self, situation):
        return Plan(None)

class Undecided:
    pass

class Broken:
    def __init__(self):
        raise RuntimeError("no licence")

NUMBER = 5
'''


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def refusal(**settings):
    with pytest.raises(ConfigError) as caught:
        plugins.load(Policy(**settings))
    return caught.value


def test_installed_policies_are_listed_with_summary_source_and_options():
    listed = {info.name: info for info in plugins.available()}
    assert {"local", "cloud", "prefer-local", "prefer-cloud", "threshold"} <= set(listed)
    info = listed["threshold"]
    assert info.summary.startswith("Runs jobs locally")
    assert info.source == "edgewise"
    assert info.options == {
        "battery_below": 0.3,
        "cpu_above": 0.9,
        "rtt_above_s": 0.5,
        "bytes_above": 4 * 1024 * 1024,
    }


def test_a_policy_that_can_not_be_imported_is_listed_as_such(monkeypatch):
    class Entry:
        name, dist = "broken", None

        def load(self):
            raise ImportError("no module 'moon'")

    monkeypatch.setattr(plugins.metadata, "entry_points", lambda group: [Entry()])
    assert plugins.available()[0].summary == "can't be imported: no module 'moon'"
    error = refusal(name="broken")
    assert (error.key, "no module 'moon'" in error.reason) == ("policy.name", True)


def test_a_policy_is_loaded_by_name_with_its_options():
    loaded = plugins.load(Policy(name="threshold", options={"cpu_above": 1}))
    assert loaded.name == "threshold"
    assert isinstance(loaded.policy, Threshold)


def test_an_unknown_name_is_refused_with_the_known_ones():
    error = refusal(name="magic")
    assert error.key == "policy.name"
    assert "prefer-local" in error.reason


def test_a_policy_is_loaded_from_a_file(file):
    loaded = plugins.load(Policy(path=f"{file}:Mine", options={"ratio": 1, "words": ["a"]}))
    assert loaded.name == "Mine"
    assert (loaded.policy.options.ratio, loaded.policy.options.words) == (1.0, ("a",))
    assert plugins.load(Policy(path=f"{file}:Bare")).name == "Bare"


@pytest.mark.parametrize("mode", [0o666, 0o602, 0o1666])
def test_a_file_that_others_can_write_is_refused(file, mode):
    file.chmod(mode)
    error = refusal(path=f"{file}:Bare")
    assert (error.key, "writable by others" in error.reason) == ("policy.path", True)


def test_a_file_in_a_folder_that_others_can_write_is_refused(file):
    file.parent.chmod(0o777)
    assert "writable by others" in refusal(path=f"{file}:Bare").reason
    file.parent.chmod(0o1777)
    assert plugins.load(Policy(path=f"{file}:Bare")).name == "Bare"


def test_a_file_that_others_can_write_is_not_run(file, tmp_path):
    trace = tmp_path / "ran"
    file.write_text(f"open({str(trace)!r}, 'w')\n{MINE}")
    file.chmod(0o666)
    refusal(path=f"{file}:Bare")
    assert not trace.exists()


@pytest.mark.parametrize(
    ("attribute", "key", "says"),
    [
        (":Nobody", "policy.path", "has no class 'Nobody'"),
        (":NUMBER", "policy.path", "has no class 'NUMBER'"),
        (":Undecided", "policy.name", "no decide(situation)"),
        (":Broken", "policy.options", "no licence"),
        ("", "policy.path", "want FILE.py:CLASS"),
        (":", "policy.path", "want FILE.py:CLASS"),
    ],
)
def test_what_is_no_policy_is_refused(file, attribute, key, says):
    error = refusal(path=f"{file}{attribute}")
    assert error.key == key
    assert says in error.reason


@pytest.mark.parametrize(
    ("content", "says"),
    [("import moon", "No module named 'moon'"), ("def (", "invalid syntax"), ("1 / 0", "division")],
)
def test_a_file_that_can_not_be_imported_is_refused(file, content, says):
    file.write_text(content)
    error = refusal(path=f"{file}:Mine")
    assert error.key == "policy.path"
    assert says in error.reason


def test_a_file_that_is_not_there_or_no_python_is_refused(tmp_path):
    assert "No such file" in refusal(path=f"{tmp_path}/none.py:Mine").reason
    (tmp_path / "mine.txt").touch()
    assert "no Python file" in refusal(path=f"{tmp_path}/mine.txt:Mine").reason


@pytest.mark.parametrize(
    ("options", "key", "says"),
    [
        ({"ratio": 0.5, "ration": 1}, "policy.options.ration", "unknown option, known: ratio"),
        ({"ratio": "0.5"}, "policy.options.ratio", "Expected `float`"),
        ({"ratio": 0.5, "words": [1]}, "policy.options.words[0]", "Expected `str`"),
        ({}, "policy.options", "missing required field `ratio`"),
        ({"ratio": 2.0}, "policy.options", "ratio must be a ratio"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(file, options, key, says):
    error = refusal(path=f"{file}:Mine", options=options)
    assert error.key == key
    assert says in error.reason


def test_options_for_a_policy_that_takes_none_are_refused(file):
    error = refusal(path=f"{file}:Bare", options={"a": 1})
    assert (error.key, "takes no options" in error.reason) == ("policy.options", True)


# Shadows


def shadow_refusal(**settings):
    with pytest.raises(ConfigError) as caught:
        plugins.load_shadows(Policy(**settings))
    return caught.value


def test_shadows_are_loaded_by_name_with_options_of_their_own():
    options = {"threshold": {"cpu_above": 0.5}}
    loaded = plugins.load_shadows(
        Policy(shadow=("local", "threshold"), options={"x": 1}, shadow_options=options)
    )
    assert [each.name for each in loaded] == ["local", "threshold"]
    assert loaded[1].policy._options.cpu_above == 0.5


@pytest.mark.parametrize(
    ("settings", "key", "why"),
    [
        ({"shadow": ("nonsense",)}, "policy.shadow", "no policy 'nonsense'"),
        ({"shadow": ("local", "local")}, "policy.shadow", "twice"),
        ({"shadow_options": {"local": {}}}, "policy.shadow_options.local", "does not name it"),
        (
            {"shadow": ("threshold",), "shadow_options": {"threshold": {"colour": 1}}},
            "policy.shadow_options.threshold.colour",
            "unknown option",
        ),
        (
            {"shadow": ("local",), "shadow_options": {"local": {"colour": 1}}},
            "policy.shadow_options.local",
            "takes no options",
        ),
    ],
)
def test_a_shadow_that_does_not_fit_is_refused_by_its_key(settings, key, why):
    refused = shadow_refusal(**settings)
    assert (refused.key, why in refused.reason) == (key, True)
