"""A device profile: strict, with defaults, and errors that name the key."""

from __future__ import annotations

import pytest

from agent.config import ConfigError, Energy
from agent.simulate import profile

LEAST = b"[models.m]\nmedian_s = 0.1\n"


def test_the_packaged_profiles_load():
    assert profile.packaged() == ["gateway", "jetson", "pi4"]
    assert profile.DEFAULT in profile.packaged()
    for name in profile.packaged():
        assert profile.load(name).models


def test_a_median_is_enough():
    least = profile.parse("p", LEAST)
    assert list(least.endpoints) == ["cloud"]
    assert least.battery is None
    assert least.energy == Energy()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"", "required field `models`"),
        (b"models = {}", "at least one"),
        (b"colour = 1\n" + LEAST, "unknown field `colour`"),
        (b"[models.m]\nmedian_s = 0", "median_s"),
        (b"[models.m]\nmedian_s = 'x'", "median_s"),
        (b"[models.'a b']\nmedian_s = 1", "'a b' is no name"),
        (LEAST + b"[battery]\ncharge = 1.5", "battery.charge"),
        (LEAST + b"[energy]\nsolar_watts = 1", "solar_watts"),
        (
            b"contention = [{at_s = 5, contention = 1}, {at_s = 5, contention = 0}]\n" + LEAST,
            "at_s",
        ),
        (b"[models", "no TOML"),
        (b"\xff", "no TOML"),
    ],
)
def test_what_is_wrong_is_named(text, says):
    with pytest.raises(ConfigError, match=r"here\.toml") as refused:
        profile.parse("here.toml", text)
    assert says in str(refused.value)


def test_a_missing_file_says_which_profiles_there_are():
    with pytest.raises(ConfigError, match="gateway, jetson, pi4"):
        profile.load("nowhere.toml")


def test_others_disturb_a_run_only_where_they_leave_less_than_one_core():
    busy = profile.parse(
        "p",
        b"cores = 4\nslowdown = 3.0\ncontention = [{at_s = 10, contention = 0.75},"
        b"{at_s = 20, contention = 0.875}, {at_s = 30, contention = 1}]\n" + LEAST,
    )
    assert [busy.slowdown_at(t) for t in (0, 10, 20, 30, 99)] == [1, 1, 2, 3, 3]


def test_an_endpoint_slows_down_and_recovers():
    endpoint = profile.CloudEndpoint(
        speed=2.0, slowdowns=(profile.Slowdown(5, 4.0), profile.Slowdown(6, 1.0))
    )
    assert [endpoint.server_factor(t) for t in (0, 5, 6)] == [0.5, 2, 0.5]
