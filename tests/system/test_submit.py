"""`edgewise submit` and `edgewise status`, against a running daemon."""

import numpy as np
import pytest

from agent import __version__


@pytest.fixture
async def config(start_daemon, configure):
    path = configure()
    await start_daemon(path)
    return path


async def test_a_png_is_submitted_and_its_answer_shown(edgewise, config, digits):
    file = digits.files("4")[0]
    ended = await edgewise("submit", "digits", file, "--config", config)
    assert ended.code == 0, ended.err
    (row,) = [line for line in ended.out.splitlines() if file.name in line]
    assert row.split()[1:3] == ["local", "4"]


async def test_a_png_is_submitted_and_its_answer_printed_as_json(edgewise, config, digits):
    file = digits.files("4")[0]
    ended = await edgewise("submit", "digits", file, "--json", "--config", config)
    assert ended.code == 0, ended.err
    (answer,) = ended.json
    assert answer["file"] == str(file)
    assert digits.read(answer) == "4"
    assert answer["parameters"]["route"] == "local"


async def test_a_folder_is_submitted_whole(edgewise, config, digits):
    folder = digits.files()[0].parent
    ended = await edgewise("submit", "digits", folder, "--json", "--config", config)
    assert ended.code == 0, ended.err
    answers = ended.json
    assert len(answers) == len(digits.files())
    right = sum(digits.read(answer) == answer["file"][-5] for answer in answers)
    assert right / len(answers) > 0.9


async def test_an_array_is_submitted_under_the_name_the_model_takes(edgewise, config, tmp_path):
    array = tmp_path / "point.npy"
    np.save(array, np.array([[0.5, -0.25]]))
    ended = await edgewise("submit", "points", array, "--json", "--config", config)
    assert ended.code == 0, ended.err
    (output,) = ended.json[0]["outputs"]
    assert 0 < output["data"][0] < 1


async def test_a_request_is_submitted_with_parameters_of_the_command_line(
    edgewise, config, digits, tmp_path
):
    file = tmp_path / "request.json"
    file.write_bytes(digits.job("from-a-file", "8"))
    ended = await edgewise(
        *("submit", "digits", file, "--json", "--config", config),
        *("--private", "--priority", 9, "--deadline-ms", 5000, "--placement", "prefer_local"),
    )
    assert ended.code == 0, ended.err
    (answer,) = ended.json
    assert answer["id"] == "from-a-file"
    assert digits.read(answer) == "8"


async def test_a_job_that_fails_exits_1_and_says_why(edgewise, config, digits):
    ended = await edgewise("submit", "nonesuch", digits.files("4")[0], "--config", config)
    assert ended.code == 1
    assert "unknown_model" in ended.out
    file = digits.files("4")[0]
    ended = await edgewise("submit", "points", file, "--json", "--config", config)
    assert ended.code == 1
    assert ended.json[0]["parameters"]["code"] == "bad_request"


async def test_files_that_are_none_or_of_another_kind_are_wrong_usage(
    edgewise, configure, tmp_path
):
    config = configure()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "empty").mkdir()
    for name in ("missing.png", "notes.txt", "empty"):
        ended = await edgewise("submit", "digits", tmp_path / name, "--config", config)
        assert ended.code == 2, name
        assert name in ended.err.replace("\n", " ")


async def test_without_a_broker_submit_and_status_exit_1_with_one_line(edgewise, configure, digits):
    config = configure(mqtt={"url": "mqtt://127.0.0.1:1"})
    for command in (("submit", "digits", digits.files("4")[0]), ("status",)):
        ended = await edgewise(*command, "--config", config)
        assert ended.code == 1
        (line,) = ended.err.splitlines()
        assert line.startswith("edgewise: broker mqtt://127.0.0.1:1: ")


async def test_status_shows_the_devices_state(edgewise, config, program):
    await program.message("state")
    ended = await edgewise("status", "--json", "--config", config)
    assert ended.code == 0, ended.err
    assert ended.json["status"] == "online"
    assert ended.json["version"] == __version__
    assert set(ended.json["state"]["models"]) == {"digits", "points"}
    ended = await edgewise("status", "--config", config)
    assert ended.code == 0
    assert "online" in ended.out
    assert "digits" in ended.out


async def test_status_of_a_device_that_is_away_exits_1(edgewise, config):
    ended = await edgewise("status", "--json", "--device", "nobody", "--config", config)
    assert ended.code == 1
    assert ended.json == {"status": "unknown"}
