"""Jobs in each of the contract's forms, over both versions of MQTT."""

import io
import json

import numpy as np
import pytest
from PIL import Image

VERSIONS = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@VERSIONS
async def test_a_png_alone_is_a_job(serve, configure, connect, digits, protocol):
    await serve(configure())
    program = await connect(protocol=protocol)
    await program.submit("digits", digits.png("4"))
    message = await program.message("results/+")
    answer = json.loads(message.payload)
    assert message.topic.value == f"{program.root}/results/{answer['id']}"
    assert digits.read(answer) == "4"
    assert answer["model_name"] == "digits"


@VERSIONS
async def test_an_open_inference_protocol_body_is_a_job(
    serve, configure, connect, digits, protocol
):
    await serve(configure())
    program = await connect(protocol=protocol)
    await program.submit("digits", digits.job("json-1", "8"))
    answer = await program.answer("json-1")
    assert digits.read(answer) == "8"
    assert answer["parameters"]["route"] == "local"


@VERSIONS
async def test_a_binary_body_without_the_header_length_is_a_job(
    serve, configure, connect, digits, protocol
):
    await serve(configure())
    program = await connect(protocol=protocol)
    payload, _ = digits.binary("binary-1", "5")
    await program.submit("digits", payload)
    assert digits.read(await program.answer("binary-1")) == "5"


async def test_a_binary_body_with_the_header_length_is_a_job(serve, configure, program, digits):
    await serve(configure())
    payload, length = digits.binary("binary-2", "6")
    await program.submit("digits", payload, User={"inference-header-content-length": length})
    assert digits.read(await program.answer("binary-2")) == "6"


async def test_the_daemon_serves_over_mqtt_3_1_1(serve, configure, broker, program, digits):
    url = f"mqtt://127.0.0.1:{broker.port_311}"
    await serve(configure(mqtt={"url": url, "protocol": "3.1.1"}))
    await program.submit("digits", digits.job("old", "2"))
    assert digits.read(await program.answer("old")) == "2"
    await program.submit("digits", digits.png("9"))
    assert digits.read(json.loads((await program.message("results/+", 2)).payload)) == "9"


async def test_a_jpeg_is_a_job_by_its_content_type(serve, configure, program, digits):
    with Image.open(io.BytesIO(digits.png("0"))) as image:
        jpeg = io.BytesIO()
        image.resize((64, 64), Image.Resampling.NEAREST).save(jpeg, "JPEG", quality=95)
    await serve(configure())
    await program.submit(
        "digits", jpeg.getvalue(), ContentType="image/jpeg", User={"id": "jpeg-1", "priority": 9}
    )
    assert digits.read(await program.answer("jpeg-1")) == "0"


async def test_an_answer_accounts_for_how_it_came_about(serve, configure, program, digits):
    await serve(configure())
    await program.submit("digits", digits.job("told", "1"))
    answer = await program.answer("told")
    told = answer["parameters"]
    assert told["route"] == "local"
    assert told["policy"] == "prefer-local"
    assert told["reason"] == "only_route"
    assert told["attempts"] == 1
    assert told["total_ms"] >= told["queue_ms"] + told["run_ms"] > 0
    assert told["energy_j"] >= 0
    assert told["cost"] == 0
    scores = next(output for output in answer["outputs"] if output["name"] == "scores")
    assert scores["shape"] == [1, 10]
    assert sum(scores["data"]) == pytest.approx(1, abs=0.05)


async def test_an_answer_holds_only_the_outputs_asked_for(serve, configure, program, digits):
    await serve(configure())
    request = {**digits.request("some", "1"), "outputs": [{"name": "label"}]}
    await program.submit("digits", json.dumps(request).encode())
    assert [output["name"] for output in (await program.answer("some"))["outputs"]] == ["label"]


async def test_an_answer_is_binary_where_the_job_asks_for_that(serve, configure, program):
    await serve(configure())
    tensor = {"name": "point", "shape": [1, 2], "datatype": "FP32", "data": [0.5, -0.25]}
    for job_id, binary in (("plain", False), ("binary", True)):
        request = {"id": job_id, "inputs": [tensor], "parameters": {"binary_data_output": binary}}
        await program.submit("points", json.dumps(request).encode())
    plain = await program.answer("plain")
    message = await program.message("results/binary")
    length = int(dict(message.properties.UserProperty)["inference-header-content-length"])
    header = json.loads(message.payload[:length])
    raw = np.frombuffer(message.payload[length:], "<f4")
    assert header["outputs"][0]["parameters"] == {"binary_data_size": raw.nbytes}
    assert raw.tolist() == np.float32(plain["outputs"][0]["data"]).tolist()


async def test_many_jobs_at_once_are_each_answered_once_and_right(
    serve, configure, program, digits
):
    serving = await serve(configure(local={"workers": 2}))
    files = digits.files()[:200]
    for number, file in enumerate(files):
        await program.submit("digits", file.read_bytes(), User={"id": f"many-{number}"})
    await program.messages("results/+", len(files))
    right = 0
    for number, file in enumerate(files):
        answer = await program.answer(f"many-{number}")
        assert len(program.on(f"results/many-{number}")) == 1
        right += digits.read(answer) == file.stem[-1]
    assert right / len(files) > 0.9
    assert await serving.metric("edgewise_jobs_total", outcome="succeeded") == len(files)


async def test_a_job_of_higher_priority_overtakes_those_that_wait(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure())
    # More than a worker is ever sent ahead.
    ordinary = [f"ordinary-{number}" for number in range(20)]
    with frozen(serving.workers):
        for job_id in ordinary:
            await program.submit("digits", digits.job(job_id))
        for job_id, priority in (("low", 1), ("high", 9), ("middle", 5)):
            await program.submit("digits", digits.job(job_id, priority=priority))
        for job_id in (*ordinary, "low", "high", "middle"):
            await program.progress(job_id, "accepted")
    await program.messages("results/+", len(ordinary) + 3)
    order = [json.loads(message.payload)["id"] for message in program.on("results/+")]
    assert order.index("high") < order.index(ordinary[-1])
    assert order[-2:] == ["middle", "low"]
    assert [job_id for job_id in order if job_id in ordinary] == ordinary
