"""Jobs over HTTP (Open Inference Protocol v2): the same store, policy and metrics as over MQTT."""

from __future__ import annotations

import asyncio
import gzip
import json
import zlib

import aiohttp
import numpy as np
import pytest

from agent.web import v2

INFER = "/v2/models/digits/infer"


@pytest.fixture
async def serving(serve, configure):
    return await serve(configure())


@pytest.fixture
def slow(configure, cloud):
    """A configuration of a model that only a cloud which hangs can run."""
    cloud.behaviour = "hang"

    def write(**sections):
        return configure(cloud=cloud, policy={"name": "cloud"}, **sections)

    return write


async def test_a_job_is_answered_in_its_response(serving, digits):
    said = await serving.post(INFER, digits.request("j1"))
    assert said.status == 200
    assert said.headers["Content-Type"].startswith("application/json")
    answer = said.json
    assert answer["id"] == "j1"
    assert answer["model_name"] == "digits"
    assert digits.read(answer) == "3"
    assert answer["parameters"]["route"] == "local"
    assert answer["parameters"]["policy"] == "prefer-local"


async def test_it_counts_as_a_job_that_came_by_http(serving, digits):
    await serving.post(INFER, digits.request("j1"))
    labels = {"model": "digits", "intake": "http"}
    assert await serving.metric("edgewise_jobs_received_total", **labels) == 1
    counted = {"model": "digits", "outcome": "succeeded"}
    assert await serving.metric("edgewise_jobs_total", **counted) == 1
    assert await serving.metric("edgewise_store_jobs", state="published") == 1


async def test_nothing_of_it_goes_out_as_an_mqtt_answer(serving, program, digits):
    await serving.post(INFER, digits.request("j1"))
    await program.submit("digits", digits.job("j2"))
    await program.answer("j2")
    assert program.on("results/j1") == []


async def test_binary_tensors_both_ways(serving, digits):
    body, length = digits.binary("j1", "7", binary_data_output=True)
    said = await serving.post(INFER, body, {"Inference-Header-Content-Length": str(length)})
    assert said.headers["Content-Type"] == "application/octet-stream"
    end = int(said.headers["Inference-Header-Content-Length"])
    scores, *_ = json.loads(said.body[:end])["outputs"]
    size = scores["parameters"]["binary_data_size"]
    assert np.frombuffer(said.body[end : end + size], np.float32).argmax() == 7


async def test_only_the_outputs_that_ask_for_it_are_binary(serving, digits):
    request = digits.request("j1")
    (name,) = [o["name"] for o in (await serving.post(INFER, request)).json["outputs"]][:1]
    wanted = [{"name": name, "parameters": {"binary_data": True}}, {"name": "label"}]
    said = await serving.post(INFER, {**request, "id": "j2", "outputs": wanted})
    end = int(said.headers["Inference-Header-Content-Length"])
    scores, label = json.loads(said.body[:end])["outputs"]
    assert "data" not in scores
    assert label["data"][0] == "3"
    assert len(said.body) - end == scores["parameters"]["binary_data_size"]


@pytest.mark.parametrize("headers", [{"Content-Type": "image/png"}, {}])
async def test_an_image_is_a_job(serving, digits, headers):
    said = await serving.post(INFER, digits.png("5"), headers)
    assert digits.read(said.json) == "5"


async def test_an_images_parameters_are_headers(serving, digits):
    headers = {
        "Content-Type": "image/png",
        "Edgewise-Id": "j1",
        "Edgewise-Priority": "9",
        "Edgewise-Placement": "only_cloud",
    }
    said = await serving.post(INFER, digits.png("5"), headers)
    assert (said.status, said.code) == (503, "no_route")
    assert said.json["id"] == "j1"
    headers["Edgewise-Priority"] = "high"
    said = await serving.post(INFER, digits.png("5"), headers)
    assert (said.status, said.code) == (400, "bad_request")


async def test_a_header_says_of_any_job_that_it_stays_on_the_device(
    serve, configure, cloud, digits
):
    serving = await serve(configure(cloud=cloud, policy={"name": "prefer-cloud"}))
    said = await serving.post(INFER, digits.request("j1"), {"Edgewise-Privacy": "device"})
    assert said.json["parameters"]["route"] == "local"
    assert cloud.seen == []


@pytest.mark.parametrize(
    ("encoding", "encode"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
async def test_a_compressed_body_is_taken(serving, digits, encoding, encode):
    body, length = digits.binary("j1", "4")
    headers = {"Content-Encoding": encoding, "Inference-Header-Content-Length": str(length)}
    assert digits.read((await serving.post(INFER, encode(body), headers)).json) == "4"


async def test_an_id_asked_again_has_its_stored_answer(serving, digits):
    first = await serving.post(INFER, digits.request("j1"))
    again = await serving.post(INFER, digits.request("j1"))
    assert again.body == first.body
    assert await serving.metric("edgewise_jobs_total") == 1


async def test_an_id_that_stands_for_another_job_is_refused(serving, digits):
    await serving.post(INFER, digits.request("j1", "3"))
    said = await serving.post(INFER, digits.request("j1", "4"))
    assert (said.status, said.code) == (400, "bad_request")


async def test_who_asks_by_mqtt_and_by_http_under_one_id_both_hear(
    serve, slow, program, cloud, digits, until
):
    serving = await serve(slow())
    await program.submit("digits", digits.job("j1"))
    await cloud.saw("j1")
    asking = asyncio.create_task(serving.post(INFER, digits.request("j1")))
    await until(lambda: serving.daemon.inference._waiting)
    cloud.release("j1")
    assert digits.read((await asking).json) == digits.read(await program.answer("j1"))
    assert cloud.seen == ["j1"]


async def test_it_works_while_the_broker_is_away(serve, configure, start_broker, connect, digits):
    broker = start_broker()
    serving = await serve(configure(at=broker), await connect(broker))
    broker.stop()
    await broker.logged("terminating")
    said = await serving.post(INFER, digits.request("j1"))
    assert digits.read(said.json) == "3"
    assert (await serving.get("/v2/health/ready"))[0] == 200


@pytest.mark.parametrize(
    ("body", "headers", "status", "code"),
    [
        (b"not JSON", {}, 400, "bad_request"),
        (b"", {}, 400, "bad_request"),
        (b'{"inputs": [', {}, 400, "bad_request"),
        (b"{}", {"Inference-Header-Content-Length": "9"}, 400, "bad_request"),
        (b"{}", {"Inference-Header-Content-Length": "-1"}, 400, "bad_request"),
        (b"\x1f\x8bgarbage", {"Content-Encoding": "gzip"}, 400, "bad_request"),
        (b"x" * 5000, {}, 413, "too_large"),
        (gzip.compress(b"x" * 5_000_000), {"Content-Encoding": "gzip"}, 413, "too_large"),
    ],
)
async def test_a_bad_request_is_answered_counted_and_harms_nobody(
    serve, configure, digits, body, headers, status, code
):
    serving = await serve(configure(limits={"max_payload_bytes": 4096}))
    said = await serving.post(INFER, body, headers)
    assert (said.status, said.code) == (status, code)
    assert said.json["error"]
    assert await serving.metric("edgewise_bad_messages_total", reason=code) == 1
    assert (await serving.post(INFER, digits.request("behind"))).status == 200


async def test_an_unknown_model_is_not_found(serving, digits):
    said = await serving.post("/v2/models/nothing/infer", digits.request("j1"))
    assert (said.status, said.code) == (404, "unknown_model")
    assert (await serving.get("/v2/models/nothing"))[0] == 404
    assert (await serving.get("/v2/models/nothing/ready"))[0] == 404
    status, text, _ = await serving.get("/v2/nowhere")
    assert status == 404
    assert "error" in json.loads(text)


async def test_a_deadline_that_passes_is_a_gateway_timeout(serving, digits):
    serving.daemon.lifecycle.pause()
    said = await serving.post(INFER, digits.request("j1", deadline_ms=50))
    assert (said.status, said.code) == (504, "deadline_exceeded")


async def test_a_full_device_says_when_to_come_again(serve, slow, cloud, digits):
    serving = await serve(slow(limits={"max_waiting_jobs": 1}))
    first = asyncio.create_task(serving.post(INFER, digits.request("j1")))
    await cloud.saw("j1")
    said = await serving.post(INFER, digits.request("j2"))
    assert (said.status, said.code) == (429, "overloaded")
    assert int(said.headers["Retry-After"]) >= 1
    cloud.release("j1")
    assert (await first).status == 200


async def test_a_store_that_can_not_write_is_unavailable(serving, digits):
    serving.daemon.store.trouble = "database or disk is full"
    said = await serving.post(INFER, digits.request("j1"))
    assert said.status == 503
    assert "disk is full" in said.json["error"]
    assert said.headers["Retry-After"] == "1"
    assert (await serving.get("/v2/health/ready"))[0] == 503
    serving.daemon.store.trouble = None
    assert (await serving.post(INFER, digits.request("j1"))).status == 200


async def test_a_job_without_an_id_ends_when_its_client_goes(serve, slow, cloud, digits, until):
    serving = await serve(slow())
    request = digits.request("")
    asking = asyncio.create_task(serving.post(INFER, request))
    await until(lambda: cloud.seen)
    asking.cancel()
    await until(lambda: not serving.daemon.lifecycle.unfinished)
    await until(lambda: serving.daemon.store.counts["published"])
    assert await serving.metric("edgewise_jobs_total", outcome="cancelled") == 1


async def test_a_job_with_an_id_goes_on_and_can_be_asked_for(serve, slow, cloud, digits, until):
    serving = await serve(slow())
    asking = asyncio.create_task(serving.post(INFER, digits.request("j1")))
    await cloud.saw("j1")
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    again = asyncio.create_task(serving.post(INFER, digits.request("j1")))
    await until(lambda: serving.daemon.inference._waiting)
    cloud.release("j1")
    assert (await again).status == 200
    assert cloud.seen == ["j1"]


async def test_a_deferred_job_answers_the_request_that_waits_for_it(
    serve, configure, cloud, digits, until
):
    await cloud.refuse()
    serving = await serve(configure(cloud=cloud, policy={"name": "cloud"}))
    request = digits.request("j1", deferrable=True, deadline_ms=60_000)
    asking = asyncio.create_task(serving.post(INFER, request))
    await until(lambda: serving.daemon.store.parked and not serving.daemon.lifecycle._live)
    await cloud.start()
    assert digits.read((await asking).json) == cloud.says


async def test_a_job_that_came_by_http_can_be_cancelled_over_mqtt(
    serve, slow, program, cloud, digits
):
    serving = await serve(slow())
    asking = asyncio.create_task(serving.post(INFER, digits.request("j1")))
    await cloud.saw("j1")
    await program.publish("cancel/j1")
    said = await asking
    assert (said.status, said.code) == (v2.CLIENT_CLOSED_REQUEST, "cancelled")


async def test_a_daemon_that_stops_sends_those_who_wait_away_and_keeps_their_jobs(
    serve, slow, configure, cloud, digits
):
    quick = {"shutdown_grace_s": 0.0}
    serving = await serve(slow(limits=quick))
    asking = asyncio.create_task(serving.post(INFER, digits.request("j1")))
    await cloud.saw("j1")
    await serving.stop()
    said = await asking
    assert said.status == 503
    assert said.json["id"] == "j1"
    cloud.behaviour = "serve"
    serving = await serve(configure(cloud=cloud, policy={"name": "cloud"}))
    said = await serving.post(INFER, digits.request("j1"))
    assert digits.read(said.json) == cloud.says


async def test_a_model_is_described(serving, digits):
    status, text, _ = await serving.get("/v2/models/digits")
    card = json.loads(text)
    assert status == 200
    assert card["name"] == "digits"
    assert card["platform"] == "litert_tflite"
    assert card["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [1, 8, 8, 1]}]
    answer = (await serving.post(INFER, digits.request("j1"))).json
    assert [o["name"] for o in card["outputs"]] == [o["name"] for o in answer["outputs"]]
    assert [o["datatype"] for o in card["outputs"]] == [o["datatype"] for o in answer["outputs"]]


async def test_a_model_that_was_refused_is_not_ready(serve, configure, tmp_path):
    (tmp_path / "bad.tflite").write_bytes(b"no model")
    serving = await serve(configure(models={"bad": {"path": str(tmp_path / "bad.tflite")}}))
    assert (await serving.get("/v2/models/bad/ready"))[0] == 503
    assert (await serving.get("/v2/models/digits/ready"))[0] == 200
    assert (await serving.get("/v2/health/ready"))[0] == 503
    assert (await serving.get("/v2/health/live"))[0] == 200


@pytest.mark.parametrize(
    ("asked", "undo"), [(None, bytes), ("gzip", gzip.decompress), ("deflate", zlib.decompress)]
)
async def test_a_large_answer_is_compressed_where_that_is_asked_for(
    serving, digits, monkeypatch, asked, undo
):
    monkeypatch.setattr(v2, "COMPRESS_FROM_BYTES", 10)
    # Another machine can't be had here.
    monkeypatch.setattr(v2, "is_loopback", lambda _: False)
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        said = await http.post(
            f"http://{serving.daemon.web.address}{INFER}",
            json=digits.request("j1"),
            headers={} if asked is None else {"Accept-Encoding": asked},
            skip_auto_headers=("Accept-Encoding",),
        )
        assert said.headers.get("Content-Encoding") == asked
        assert digits.read(json.loads(undo(await said.read()))) == "3"


async def test_on_the_device_itself_nothing_is_compressed(serving, digits, monkeypatch):
    monkeypatch.setattr(v2, "COMPRESS_FROM_BYTES", 10)
    said = await serving.post(INFER, digits.request("j1"), {"Accept-Encoding": "gzip"})
    assert said.status == 200
    assert "Content-Encoding" not in said.headers


async def test_without_an_id_of_its_own_a_job_does_not_wait_for_the_disk(serving, digits, commits):
    await serving.post(INFER, digits.request("first"))
    with commits.held(serving):
        named = asyncio.create_task(serving.post(INFER, digits.request("named")))
        said = await serving.post(INFER, digits.request(""))
        assert digits.read(said.json) == "3"
        await commits.tried()
        assert not named.done()
    assert digits.read((await named).json) == "3"


async def test_the_token_guards_it(serve, configure, tmp_path, digits):
    (tmp_path / "token").write_text("the-token\n")
    serving = await serve(configure(http={"token_file": "token"}))
    for given in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer \xff"}):
        said = await serving.post(INFER, digits.request("j1"), given)
        assert said.status == 401
        assert "error" in said.json
    right = {"Authorization": "Bearer the-token"}
    assert (await serving.post(INFER, digits.request("j1"), right)).status == 200


async def test_a_body_that_drips_is_sent_away(serving, until):
    serving.daemon.inference._bodies._pause_s = 0.05
    host, port = serving.daemon.web.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{{".encode())
    async with asyncio.timeout(20):
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 408 ")
        await reader.read()  # and its connection is closed
    writer.close()
    assert serving.daemon.inference._bodies._held == 0


async def test_bodies_under_way_are_bounded_together(serve, configure, digits, until):
    bounds = {"max_payload_bytes": 10_000, "max_waiting_bytes": 10_000}
    serving = await serve(configure(limits=bounds))
    host, port = serving.daemon.web.address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\n".encode())
    writer.write(b"x" * 9998)
    await until(lambda: serving.daemon.inference._bodies._held == 9998)
    said = await serving.post(INFER, digits.request("j1"))
    assert (said.status, said.code) == (429, "overloaded")
    writer.close()
    await until(lambda: not serving.daemon.inference._bodies._held)
    assert (await serving.post(INFER, digits.request("j1"))).status == 200


async def test_what_is_no_http_is_counted_as_a_bad_message(serving):
    host, _, port = serving.daemon.web.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v2 HTTP/1.1\r\n: nameless\r\n\r\n")
    assert b" 400 " in await reader.readline()
    writer.close()
    await writer.wait_closed()
    assert await serving.metric("edgewise_bad_messages_total", reason="bad_request") == 1
