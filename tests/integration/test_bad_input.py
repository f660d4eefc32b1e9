"""Whatever comes in is answered by a clear error or counted, and harms no other job."""

import io
import json
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from structlog.testing import capture_logs

LIMIT = 100_000


def changed(digits, **fields):
    """A good job's request, with its input changed."""
    request = digits.request("bad")
    request["inputs"][0].update(fields)
    return json.dumps(request).encode()


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_that_claims(width, height):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"\x78\x9c")


def bomb():
    """A sound PNG of a few kilobytes that takes 49 million pixels."""
    file = io.BytesIO()
    Image.new("1", (7000, 7000)).save(file, "PNG", optimize=True)
    return file.getvalue()


def nan_in_binary(digits):
    payload, length = digits.binary("bad")
    return payload[:length] + np.full(64, np.nan, "<f4").tobytes()


# What makes the payload, and the code of the error that answers it. The id can be read.
NO_JOBS = {
    "a shape that does not fit its data": (
        lambda d: changed(d, shape=[1, 9, 9, 1]),
        "bad_request",
    ),
    "a negative shape": (lambda d: changed(d, shape=[-1, 64]), "bad_request"),
    "an unknown datatype": (lambda d: changed(d, datatype="FP31"), "bad_request"),
    "data of another type": (lambda d: changed(d, data=["one"] * 64), "bad_request"),
    "a NaN": (lambda d: changed(d, data=[float("nan")] * 64), "bad_request"),
    "a NaN in binary data": (nan_in_binary, "bad_request"),
    "a number beyond its datatype": (lambda d: changed(d, data=[1e300] * 64), "bad_request"),
    "binary data cut short": (lambda d: d.binary("bad")[0][:-9], "bad_request"),
    "bytes behind the last tensor": (lambda d: d.binary("bad")[0] + b"!", "bad_request"),
    "no inputs": (lambda d: b'{"id": "bad"}', "bad_request"),
    "inputs that are no list": (lambda d: b'{"id": "bad", "inputs": 7}', "bad_request"),
    "a deadline in the past": (lambda d: d.job("bad", deadline_ms=-1), "bad_request"),
    "an unknown placement": (lambda d: d.job("bad", placement="moon"), "bad_request"),
    "an unknown privacy": (lambda d: d.job("bad", privacy="secret"), "bad_request"),
}
# As above, where the job is well formed and does not fit what it asks for.
UNFIT_JOBS = {
    "a shape that is not the model's": (
        "digits",
        lambda d: changed(d, shape=[64]),
        "bad_request",
    ),
    "a datatype that is not the model's": (
        "digits",
        lambda d: changed(d, datatype="INT64", data=[1] * 64),
        "bad_request",
    ),
    "a name that is not the model's": (
        "digits",
        lambda d: changed(d, name="picture"),
        "bad_request",
    ),
    "an unknown model": ("nonesuch", lambda d: d.job("bad"), "unknown_model"),
    "an output the model lacks": (
        "digits",
        lambda d: json.dumps({**d.request("bad"), "outputs": [{"name": "x"}]}).encode(),
        "bad_request",
    ),
    "an endpoint that is not": (
        "digits",
        lambda d: d.job("bad", endpoint="nowhere"),
        "no_route",
    ),
    "an image that is not one": ("digits", lambda d: b"no image at all", "bad_request"),
    "an image cut short": ("digits", lambda d: d.png("1")[:60], "bad_request"),
    "an image for a model of tensors": ("points", lambda d: d.png("1"), "bad_request"),
    "a decompression bomb": ("digits", lambda d: bomb(), "too_large"),
    "a claim of four thousand megapixels": (
        "digits",
        lambda d: png_that_claims(65_000, 65_000),
        "too_large",
    ),
}


async def assert_unharmed(serving, program, digits, workers):
    await program.submit("digits", digits.job("good", "3"))
    assert digits.read(await program.answer("good")) == "3"
    assert serving.workers == workers
    assert await serving.metric("edgewise_worker_restarts_total") == 0


@pytest.mark.parametrize("case", NO_JOBS)
async def test_what_makes_no_job_is_answered_counted_and_logged(
    serve, configure, program, digits, case
):
    make, code = NO_JOBS[case]
    serving = await serve(configure())
    workers = serving.workers
    with capture_logs() as logs:
        await program.submit("digits", make(digits))
        answer = await program.answer("bad")
    assert answer["parameters"]["code"] == code
    assert len(answer["error"]) > 10
    assert await serving.metric("edgewise_bad_messages_total", reason=code) == 1
    assert await serving.metric("edgewise_jobs_received_total") == 0
    assert [line["detail"] for line in logs if line["event"] == "bad_message"] == [answer["error"]]
    await assert_unharmed(serving, program, digits, workers)


@pytest.mark.parametrize("case", UNFIT_JOBS)
async def test_a_job_that_does_not_fit_is_answered_counted_and_logged(
    serve, configure, program, digits, case
):
    model, make, code = UNFIT_JOBS[case]
    serving = await serve(configure())
    workers = serving.workers
    payload = make(digits)
    properties = {"User": {"id": "bad"}}
    if "image" in case and not payload.startswith(b"\x89PNG"):
        properties["ContentType"] = "image/png"
    with capture_logs() as logs:
        await program.submit(model, payload, **properties)
        answer = await program.answer("bad")
        # The answer waits for no report; a scrape has all of them made, the log too.
        assert await serving.metric("edgewise_jobs_total", outcome="rejected") == 1
    assert answer["parameters"]["code"] == code
    assert len(answer["error"]) > 10
    answered = [line for line in logs if line["event"] == "job_answered"]
    assert [(line["error"], line["detail"]) for line in answered] == [(code, answer["error"])]
    await assert_unharmed(serving, program, digits, workers)


@pytest.mark.parametrize(
    "payload",
    [b"", b"hello", b"{", b'{"id": "bad/id", "inputs": []}', b"[" * 50_000, b"\xff\xfe" * 99],
    ids=["nothing", "text", "half an object", "a bad id", "deep nesting", "bytes"],
)
async def test_what_nobody_can_be_answered_for_is_counted_and_logged(
    serve, configure, program, digits, payload
):
    serving = await serve(configure())
    workers = serving.workers
    with capture_logs() as logs:
        await program.submit("digits", payload)
        await assert_unharmed(serving, program, digits, workers)
    assert await serving.metric("edgewise_bad_messages_total", reason="bad_request") == 1
    assert len([line for line in logs if line["event"] == "bad_message"]) == 1
    assert len(program.on("results/+")) == 1


async def test_an_oversize_payload_is_answered_too_large(serve, configure, program, digits):
    serving = await serve(configure(limits={"max_payload_bytes": LIMIT}))
    workers = serving.workers
    await program.submit("digits", bytes(LIMIT + 1), User={"id": "big"})
    answer = await program.answer("big")
    assert answer["parameters"]["code"] == "too_large"
    assert str(LIMIT) in answer["error"]
    assert await serving.metric("edgewise_bad_messages_total", reason="too_large") == 1
    await assert_unharmed(serving, program, digits, workers)


async def test_a_bad_id_is_answered_under_a_made_up_one_where_a_response_topic_is_named(
    serve, configure, program, digits, device
):
    await serve(configure(mqtt={"reply_topics": [f"replies/{device}/#"]}))
    await program.subscribe(f"replies/{device}/#")
    topic = f"replies/{device}/mine"
    await program.submit(
        "digits", digits.job("a/b"), ResponseTopic=topic, CorrelationData=b"\x00\x01"
    )
    message = await program.message(topic)
    answer = json.loads(message.payload)
    assert answer["parameters"]["code"] == "bad_request"
    assert answer["id"] != "a/b"
    assert message.properties.CorrelationData == b"\x00\x01"


@pytest.mark.parametrize("model", ["nonesuch", "modèle", "x" * 5000, "a b"])
async def test_a_model_of_any_name_is_answered_and_no_label_value(
    serve, configure, program, digits, model
):
    serving = await serve(configure())
    await program.submit(model, digits.job("lost"))
    answer = await program.answer("lost")
    assert answer["parameters"]["code"] == "unknown_model"
    assert len(answer["error"]) < 500
    assert await serving.metric("edgewise_jobs_total", model="other") == 1
    _, text, _ = await serving.get("/metrics")
    assert f'"{model}"' not in text
