"""A language model on the device: texts in, texts out, in a worker, and the cloud beside it.

The library is a stand-in where it has to run a model: see `standins/litert_lm_backwards`.
"""

import json
from pathlib import Path

import pytest
import standins
from standins import serving
from standins.openai import OpenAi

LIBRARY = Path(standins.__file__).parent / "litert_lm_backwards"


@pytest.fixture
def library(monkeypatch):
    """Have worker processes find the stand-in library."""
    monkeypatch.setenv("PYTHONPATH", str(LIBRARY))


@pytest.fixture
async def talk(library, serve, configure, tmp_path):
    """A daemon with a text model both on the device and in the cloud, and that endpoint."""
    (tmp_path / "tiny.litertlm").write_bytes(b"LITERTLM and so on")
    server = OpenAi()
    async with serving(server.application()) as url:
        model = {"path": "tiny.litertlm", "max_output_tokens": 4, "cloud": [{"endpoint": "llm"}]}
        endpoint = {"url": url, "protocol": "openai"}
        server.serving = await serve(configure(models={"talk": model}, endpoints={"llm": endpoint}))
        yield server


def job(job_id, text, name="text", **parameters):
    tensor = {"name": name, "shape": [1], "datatype": "BYTES", "data": [text]}
    return json.dumps({"id": job_id, "inputs": [tensor], "parameters": parameters}).encode()


async def said(program, *arguments, **parameters):
    await program.submit("talk", job(*arguments, **parameters))
    answer = await program.answer(arguments[0])
    assert answer["parameters"]["route"] == parameters.get("route", "local"), answer
    (output,) = (each for each in answer["outputs"] if each["name"] == "text_output")
    return output["data"]


async def test_a_text_is_answered_on_the_device(talk, program):
    assert await said(program, "here", "one two three") == ["three two one"]
    assert talk.bodies == []


async def test_a_private_text_is_answered_on_the_device(talk, program):
    assert await said(program, "secret", "one two", privacy="device") == ["two one"]
    assert talk.bodies == []


async def test_the_same_job_may_go_to_the_cloud(talk, program):
    await program.submit("talk", job("there", "one two", placement="only_cloud"))
    answer = await program.answer("there")
    assert answer["parameters"]["route"] == "cloud"
    assert answer["outputs"][0]["data"] == ["two one"]


async def test_a_conversation_is_taken_as_a_list_of_messages(talk, program):
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "one two"},
    ]
    assert await said(program, "long", json.dumps(messages), "messages") == ["two one (1 before)"]


async def test_an_answer_is_no_longer_than_is_configured(talk, program):
    assert await said(program, "cut", "1 2 3 4 5 6") == ["6 5 4 3"]


async def test_a_model_that_fails_leaves_the_text_to_the_cloud(talk, program):
    await program.submit("talk", job("falls-back", "please fail"))
    answer = await program.answer("falls-back")
    assert answer["parameters"]["route"] == "cloud"
    assert answer["parameters"]["attempts"] == 2


@pytest.mark.parametrize(("text", "name"), [("[]", "messages"), ("{", "messages")])
async def test_what_is_no_conversation_is_refused(talk, program, text, name):
    await program.submit("talk", job("bad", text, name, placement="only_local"))
    assert (await program.answer("bad"))["parameters"]["code"] == "bad_request"


async def test_numbers_are_no_text(talk, program):
    tensor = {"name": "text", "shape": [1], "datatype": "FP32", "data": [1]}
    parameters = {"placement": "only_local"}
    body = {"id": "bad", "inputs": [tensor], "parameters": parameters}
    await program.submit("talk", json.dumps(body).encode())
    answer = await program.answer("bad")
    assert answer["parameters"]["code"] == "bad_request"
    assert "one BYTES input" in answer["error"]


async def test_a_file_that_is_no_language_model_is_refused_by_name(
    library, serve, configure, tmp_path
):
    (tmp_path / "tiny.litertlm").write_bytes(b"something else")
    serving = await serve(configure(models={"talk": {"path": "tiny.litertlm"}}))
    assert "Failed to create LiteRT-LM engine" in serving.daemon.local.refused["talk"]


async def test_a_device_without_the_library_is_told_what_to_install(
    monkeypatch, serve, configure, tmp_path
):
    (tmp_path / "missing").mkdir()
    (tmp_path / "missing" / "litert_lm.py").write_text("raise ImportError('not installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "missing"))
    (tmp_path / "tiny.litertlm").write_bytes(b"LITERTLM and so on")
    serving = await serve(configure(models={"talk": {"path": "tiny.litertlm"}}))
    assert "edgewise[llm]" in serving.daemon.local.refused["talk"]
