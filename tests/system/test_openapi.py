"""The HTTP port is as its OpenAPI description says, whatever is sent to it."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from agent.config import load
from agent.daemon import Daemon
from agent.web import page
from agent.web.openapi import FILE

WITHIN_S = 110.0
EXAMPLES = 10  # of each operation, in each phase
SEED = 8
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_headers_conformance,response_schema_conformance,ignored_auth"
)
# A stream without end; and what would switch the daemon over while others ask it.
APART = ("/api/events", "/api/control/{command}")
# A job that may wait does, for as long as its deadline says.
HOOKS = """
import schemathesis

@schemathesis.hook
def map_body(context, body):
    if isinstance(body, dict) and isinstance(body.get("parameters"), dict):
        body["parameters"].pop("deferrable", None)
    return body
"""


def described():
    """Give each method and path of the description."""
    paths = json.loads(FILE.read_bytes())["paths"]
    return {(method.upper(), path) for path, methods in paths.items() for method in methods}


def test_what_is_served_is_described_and_nothing_else(configure):
    config = load(configure())
    daemon = Daemon(config, lambda: config)
    served = {(route.method, route.path) for route in daemon.web.routes}
    hidden = {("GET", path) for path in page.FILES} | {("*", "/v2/{rest:.*}")}
    assert served - hidden == described()


async def test_any_request_is_answered_as_the_description_says(start_daemon, configure, tmp_path):
    daemon = await start_daemon(configure())
    address = (await daemon.logged("http_listening"))["address"]
    hooks = tmp_path / "hooks.py"
    hooks.write_text(HOOKS)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", "run", f"http://{address}/openapi.json"),
        *("--checks", CHECKS, "--max-examples", str(EXAMPLES), "--seed", str(SEED)),
        *("--phases", "examples,coverage,fuzzing", "--request-timeout", "20", "--no-color"),
        *(part for path in APART for part in ("--exclude-path", path)),
        cwd=tmp_path,
        env={**os.environ, "SCHEMATHESIS_HOOKS": str(hooks)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(WITHIN_S):
        said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert (await daemon.get("/readyz"))[0] == 200
    assert not [line for line in daemon.log if line["event"] == "text" and "Error" in line["text"]]
