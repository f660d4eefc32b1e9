"""A configuration that can't be used ends `edgewise run` with 78 and one clear line."""

import pytest

BAD = {
    "an unknown section": ({"modles": {}}, "modles"),
    "an unknown key": ({"mqtt": {"ulr": "mqtt://x"}}, "mqtt.ulr"),
    "a value of another type": ({"local": {"workers": "two"}}, "local.workers"),
    "a value out of range": ({"limits": {"max_payload_bytes": 0}}, "limits.max_payload_bytes"),
    "a url of another kind": ({"mqtt": {"url": "http://broker"}}, "mqtt.url"),
    "credentials in a url": ({"mqtt": {"url": "mqtt://me:pw@broker"}}, "mqtt.url"),
    "a listen address without a port": ({"http": {"listen": "localhost"}}, "http.listen"),
    "a device id that is no topic level": ({"device": {"id": "a/b"}}, "device.id"),
    "an unknown endpoint": (
        {"models": {"far": {"cloud": [{"endpoint": "nowhere"}]}}},
        "models.far.cloud",
    ),
    "a model without a place": ({"models": {"idle": {}}}, "models.idle"),
    "a sha256 that is none": (
        {"models": {"points": {"path": "x", "sha256": "abc"}}},
        "models.points.sha256",
    ),
    "an unknown policy": ({"policy": {"name": "oracle"}}, "policy.name"),
    "an unknown option": (
        {"policy": {"name": "threshold", "options": {"bateri": 1}}},
        "policy.options.bateri",
    ),
    "an option out of range": (
        {"policy": {"name": "threshold", "options": {"cpu_above": 7.0}}},
        "policy.options",
    ),
    "an unknown shadow": ({"policy": {"shadow": ["oracle"]}}, "policy.shadow"),
    "an unknown option of a shadow": (
        {"policy": {"shadow": ["threshold"], "shadow_options": {"threshold": {"bateri": 1}}}},
        "policy.shadow_options.threshold.bateri",
    ),
    "labels that are not there": (
        {"models": {"points": {"path": "x", "labels": "none.txt"}}},
        "models.points.labels",
    ),
    "a policy's file that is not there": ({"policy": {"path": "none.py:Mine"}}, "policy.path"),
}
SECRETS = {
    "mqtt.password_file": {"mqtt": {"username": "me", "password_file": "none"}},
    "http.token_file": {"http": {"token_file": "none"}},
}


@pytest.mark.parametrize("case", BAD)
async def test_a_bad_key_ends_the_run_with_78_naming_file_key_and_reason(edgewise, configure, case):
    sections, key = BAD[case]
    path = configure(**sections)
    ended = await edgewise("run", "--config", path)
    assert ended.code == 78
    assert ended.out == ""
    (line,) = ended.err.splitlines()
    assert line.startswith("edgewise: ")
    assert key in line
    assert str(path) in line
    assert not line.rstrip().endswith(key)


@pytest.mark.parametrize("key", SECRETS)
async def test_a_secret_that_can_not_be_read_ends_the_run_with_78(
    edgewise, configure, key, tmp_path
):
    ended = await edgewise("run", "--config", configure(**SECRETS[key]))
    assert ended.code == 78
    (line,) = ended.err.splitlines()
    assert str(tmp_path / "none") in line
    assert key in line


async def test_a_file_that_is_missing_or_no_toml_is_named(edgewise, tmp_path):
    missing = tmp_path / "missing.toml"
    ended = await edgewise("--config", missing, "run")
    assert ended.code == 78
    assert str(missing) in ended.err
    garbage = tmp_path / "garbage.toml"
    garbage.write_text("[device\n")
    ended = await edgewise("run", EDGEWISE_CONFIG=str(garbage))
    assert ended.code == 78
    assert str(garbage) in ended.err
    assert len(ended.err.splitlines()) == 1


async def test_a_bad_key_of_a_drop_in_or_the_environment_is_found_where_it_was_said(
    edgewise, configure, tmp_path
):
    path = configure()
    ended = await edgewise("run", "--config", path, EDGEWISE_LOCAL__WORKERS="0")
    assert ended.code == 78
    assert "EDGEWISE_LOCAL__WORKERS" in ended.err
    folder = tmp_path / "edgewise.d"
    folder.mkdir()
    drop_in = folder / "10-mine.toml"
    drop_in.write_text("[http]\nlisten_on = 1\n")
    ended = await edgewise("run", "--config", path)
    assert ended.code == 78
    assert str(drop_in) in ended.err
    assert "http.listen_on" in ended.err
