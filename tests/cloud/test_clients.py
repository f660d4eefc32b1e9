"""MLServer's own client, as MLServer ships it, sends jobs to a device."""

from __future__ import annotations

import asyncio
import json

import pytest
from model_servers import ENVIRONMENTS

pytestmark = pytest.mark.cloud
MLSERVER = ENVIRONMENTS / "mlserver" / "bin" / "mlserver"


async def test_mlservers_client_infers(start_daemon, configure, tmp_path):
    daemon = await start_daemon(configure())
    address = (await daemon.logged("http_listening"))["address"]
    tensor = {"name": "point", "shape": [1, 2], "datatype": "FP32"}
    asked = [
        {"id": f"job-{number}", "inputs": [{**tensor, "data": [number / 10, -0.5]}]}
        for number in range(5)
    ]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(each)}\n" for each in asked))
    process = await asyncio.create_subprocess_exec(
        *(MLSERVER, "infer", "--url", address, "--model-name", "points"),
        *("--input-data-path", tmp_path / "in.jsonl", "--output-data-path", tmp_path / "out.jsonl"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert sorted(answer["id"] for answer in answers) == [each["id"] for each in asked]
    assert all(answer["parameters"]["route"] == "local" for answer in answers)
    assert await daemon.metric("edgewise_jobs_received_total", intake="http") == len(asked)
