"""A private job never leaves the device: on no path, and it fails closed."""

import pytest


async def assert_never_seen(serve_program_cloud, job_id):
    program, digits, cloud = serve_program_cloud
    # A public job behind it does reach the endpoint: the stand-in counts.
    await program.submit("digits", digits.job("public", placement="only_cloud"))
    await program.answer("public")
    assert cloud.seen == ["public"]
    assert job_id not in cloud.seen


@pytest.mark.parametrize("placement", ["auto", "prefer_cloud", "prefer_local", "only_local"])
async def test_a_private_job_runs_here_whatever_the_policy_prefers(
    serve, configure, program, digits, cloud, placement
):
    await serve(configure(cloud=cloud, policy={"name": "prefer-cloud"}))
    await program.submit("digits", digits.job("mine", privacy="device", placement=placement))
    answer = await program.answer("mine")
    assert digits.read(answer) == "3"
    assert answer["parameters"]["route"] == "local"
    await assert_never_seen((program, digits, cloud), "mine")


async def test_a_private_image_runs_here(serve, configure, program, digits, cloud):
    await serve(configure(cloud=cloud, policy={"name": "prefer-cloud"}))
    await program.submit("digits", digits.png("4"), User={"id": "face", "privacy": "device"})
    assert digits.read(await program.answer("face")) == "4"
    await assert_never_seen((program, digits, cloud), "face")


async def test_a_private_job_pinned_to_the_cloud_gets_no_route(
    serve, configure, program, digits, cloud
):
    await serve(configure(cloud=cloud))
    for job_id, terms in (("pinned", {"endpoint": "lab"}), ("only", {"placement": "only_cloud"})):
        await program.submit("digits", digits.job(job_id, privacy="device", **terms))
        answer = await program.answer(job_id)
        assert answer["parameters"]["code"] == "no_route"
        assert "private" in answer["error"]
    await assert_never_seen((program, digits, cloud), "only")


async def test_a_private_job_whose_model_hangs_fails_here(
    serve, configure, program, digits, cloud, frozen
):
    serving = await serve(configure(cloud=cloud, local={"run_timeout_s": 0.3}))
    with frozen(serving.workers):
        await program.submit("digits", digits.job("hangs", privacy="device"))
        answer = await program.answer("hangs")
    assert answer["parameters"]["code"] == "model_error"
    await assert_never_seen((program, digits, cloud), "hangs")


async def test_a_doubtful_private_answer_is_not_escalated(serve, configure, program, digits, cloud):
    await serve(configure(cloud=cloud))
    await program.submit("digits", digits.job("shy", privacy="device", min_confidence=1.0))
    assert digits.read(await program.answer("shy")) == "3"
    await assert_never_seen((program, digits, cloud), "shy")


async def test_a_private_job_for_a_corrupt_model_fails_here(
    serve, configure, program, digits, cloud, tmp_path
):
    broken = tmp_path / "broken.tflite"
    broken.write_bytes(b"no model")
    models = {"broken": {"path": str(broken), "cloud": [{"endpoint": "lab"}]}}
    await serve(configure(cloud=cloud, models=models))
    await program.submit("broken", digits.job("closed", privacy="device"))
    assert (await program.answer("closed"))["parameters"]["code"] == "model_error"
    await program.submit("broken", digits.job("open"))
    assert (await program.answer("open"))["parameters"]["route"] == "cloud"
    assert cloud.seen == ["open"]
