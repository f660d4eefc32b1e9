"""Workers that die or hang, and models that don't load: one job's trouble is no other's."""

import asyncio
import hashlib
import os
import signal
from pathlib import Path

import pytest

from agent.routes.messages import Run
from agent.routes.process import WorkerProcess

DATA = Path(__file__).parents[2] / "agent" / "demo" / "data"


async def test_the_job_of_a_killed_worker_is_retried_and_the_others_are_untouched(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(local={"workers": 2}))
    doomed, other = serving.workers
    with frozen([doomed, other]):
        for number in range(12):
            await program.submit("digits", digits.job(f"job-{number}"))
        for running in ("job-0", "job-1"):
            await program.progress(running, "started")
        os.kill(doomed, signal.SIGKILL)
    for number in range(12):
        assert digits.read(await program.answer(f"job-{number}")) == "3"
        assert len(program.on(f"results/job-{number}")) == 1
    assert await serving.metric("edgewise_worker_restarts_total") == 1
    assert other in serving.workers
    assert doomed not in serving.workers


async def test_a_job_that_kills_its_worker_twice_is_answered_model_error(
    serve, configure, program, digits, monkeypatch
):
    serving = await serve(configure())
    ask = WorkerProcess.ask

    async def ask_and_kill(worker, request, *terms):
        if isinstance(request, Run):
            os.kill(worker.pid, signal.SIGSTOP)
            asyncio.get_running_loop().call_soon(os.kill, worker.pid, signal.SIGKILL)
        return await ask(worker, request, *terms)

    with monkeypatch.context() as patch:
        patch.setattr(WorkerProcess, "ask", ask_and_kill)
        await program.submit("digits", digits.job("killer"))
        answer = await program.answer("killer")
    assert answer["parameters"]["code"] == "model_error"
    assert await serving.metric("edgewise_worker_restarts_total") == 2
    await program.submit("digits", digits.job("good"))
    assert digits.read(await program.answer("good")) == "3"


async def test_a_worker_that_dies_between_jobs_costs_no_job(serve, configure, program, digits):
    serving = await serve(configure())
    os.kill(serving.workers[0], signal.SIGKILL)
    await program.submit("digits", digits.job("next"))
    assert digits.read(await program.answer("next")) == "3"


async def test_a_model_that_hangs_is_cut_off_at_run_timeout(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(local={"run_timeout_s": 0.5}))
    with frozen(serving.workers):
        await program.submit("digits", digits.job("hangs"))
        await program.progress("hangs", "started")
        await program.submit("digits", digits.job("waits"))
        answer = await program.answer("hangs")
        assert digits.read(await program.answer("waits")) == "3"
    assert answer["parameters"]["code"] == "model_error"
    assert "run_timeout_s" in answer["error"]
    assert 500 <= answer["parameters"]["total_ms"] < 1500
    assert await serving.metric("edgewise_worker_restarts_total") == 1


async def test_a_job_whose_model_hangs_here_is_answered_by_the_cloud(
    serve, configure, program, digits, frozen, cloud
):
    serving = await serve(configure(cloud=cloud, local={"run_timeout_s": 0.3}))
    with frozen(serving.workers):
        await program.submit("digits", digits.job("moves-on"))
        answer = await program.answer("moves-on")
    assert digits.read(answer) == cloud.says
    assert answer["parameters"]["route"] == "cloud"
    assert answer["parameters"]["endpoint"] == "lab"
    assert answer["parameters"]["reason"] == "retry"
    assert answer["parameters"]["attempts"] == 2
    assert (await program.progress("moves-on", "retrying"))["reason"] == "model_error"
    assert program.states("moves-on") == ["accepted", "started", "retrying", "started"]


async def test_a_deadline_is_kept_while_the_model_hangs(serve, configure, program, digits, frozen):
    serving = await serve(configure())
    with frozen(serving.workers):
        await program.submit("digits", digits.job("late", deadline_ms=300))
        answer = await program.answer("late")
    assert answer["parameters"]["code"] == "deadline_exceeded"
    assert 300 <= answer["parameters"]["total_ms"] < 800
    assert await serving.metric("edgewise_jobs_total", outcome="expired") == 1
    assert await serving.metric("edgewise_deadline_misses_total", model="digits") == 1


async def test_jobs_beyond_the_limit_are_answered_overloaded(
    serve, configure, program, digits, frozen
):
    serving = await serve(configure(limits={"max_waiting_jobs": 2}))
    with frozen(serving.workers):
        for job_id in ("one", "two", "three"):
            await program.submit("digits", digits.job(job_id))
        answer = await program.answer("three")
        assert answer["parameters"]["code"] == "overloaded"
        assert program.on("results/one") == []
    for job_id in ("one", "two"):
        assert digits.read(await program.answer(job_id)) == "3"


def mutated(model: bytes) -> bytes:
    return model[:200] + bytes(200) + model[400:]


@pytest.mark.parametrize(
    "spoil",
    [lambda _: b"", lambda _: b"not a model\n" * 99, lambda model: model[:700], mutated],
    ids=["empty", "text", "cut short", "mutated"],
)
async def test_a_corrupt_model_is_refused_by_name_and_the_others_serve(
    serve, configure, program, digits, tmp_path, spoil
):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(spoil((DATA / "points.tflite").read_bytes()))
    serving = await serve(configure(models={"broken": {"path": str(broken)}}))
    await program.submit("broken", digits.job("to-broken"))
    answer = await program.answer("to-broken")
    assert answer["parameters"]["code"] == "model_error"
    assert "model 'broken'" in answer["error"]
    await program.submit("digits", digits.job("to-good"))
    assert digits.read(await program.answer("to-good")) == "3"
    status, text, _ = await serving.get("/readyz")
    assert status == 503
    assert "model 'broken'" in text


async def test_a_model_that_is_not_the_one_named_by_sha256_is_refused(
    serve, configure, program, digits
):
    right = hashlib.sha256((DATA / "points.tflite").read_bytes()).hexdigest()
    path = str(DATA / "points.tflite")
    models = {"right": {"path": path, "sha256": right}, "wrong": {"path": path, "sha256": "0" * 64}}
    serving = await serve(configure(models=models))
    assert set(serving.daemon.local.refused) == {"wrong"}
    _, text, _ = await serving.get("/readyz")
    assert "model 'wrong'" in text
    assert right in text


async def test_a_model_whose_file_changes_under_us_fails_by_name_only(
    serve, configure, program, digits, tmp_path
):
    changing = tmp_path / "changing.tflite"
    model = (DATA / "points.tflite").read_bytes()
    changing.write_bytes(model)
    serving = await serve(
        configure(
            models={
                "changing": {"path": str(changing), "sha256": hashlib.sha256(model).hexdigest()}
            }
        )
    )
    changing.write_bytes(mutated(model))
    os.kill(serving.workers[0], signal.SIGKILL)
    await program.submit("digits", digits.job("good"))
    assert digits.read(await program.answer("good")) == "3"
    tensor = b'{"name": "point", "shape": [1, 2], "datatype": "FP32", "data": [0, 1]}'
    await program.submit("changing", b'{"id": "gone", "inputs": [%s]}' % tensor)
    answer = await program.answer("gone")
    assert answer["parameters"]["code"] == "model_error"
    assert "'changing'" in answer["error"]
