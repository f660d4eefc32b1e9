"""`make audit`, against a stand-in for the vulnerability service, which CI may not reach."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent.demo.broker import free_port

ROOT = Path(__file__).parents[2]
FLAW = {
    "id": "PYSEC-2026-1",
    "summary": "Reads what it should not.",
    "published": "2026-01-01T00:00:00Z",
    "affected": [
        {
            "package": {"name": "numpy", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "99.1"}]}],
        }
    ],
}


@pytest.fixture
def service():
    """Speaks as much of OSV's API as pip-audit asks for; knows of what is in `flawed`."""

    class Osv(BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            pin = (asked["package"]["name"], asked["version"])
            server.asked.append(pin)
            answer = json.dumps({"vulns": [FLAW]} if pin in server.flawed else {}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Osv)
    server.asked, server.flawed = [], set()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def audit(port):
    return subprocess.run(
        [
            *(sys.executable, ROOT / "deploy" / "audit.py", "--vulnerability-service=osv"),
            f"--osv-url=http://127.0.0.1:{port}/v1/query",
        ],
        capture_output=True,
        text=True,
        check=False,
    )


def locked(lock):
    text = (ROOT / lock).read_text()
    return set(re.findall(r"^([\w.-]+)==([^ ;\\]+)", text, flags=re.MULTILINE))


def test_a_flaw_of_any_locked_version_fails_the_audit_and_is_named(service):
    pins = locked("requirements.lock") | locked("requirements-build.lock")
    # Which is for another Python than some others of its pins.
    service.flawed = {max(pin for pin in pins if pin[0] == "numpy")}
    ended = audit(service.server_port)
    assert ended.returncode == 1
    ((name, version),) = service.flawed
    assert ended.stdout == f"audit: {name} {version} has PYSEC-2026-1; fixed in: 99.1\n"
    assert set(service.asked) == pins


def test_where_nothing_is_known_the_audit_says_of_how_many(service):
    ended = audit(service.server_port)
    assert ended.returncode == 0
    assert re.fullmatch(r"audit: nothing is known against \d+ dependencies\n", ended.stdout)


def test_a_service_that_cannot_be_reached_is_told_and_fails_nothing():
    ended = audit(free_port())
    assert ended.returncode == 0
    assert ended.stdout.startswith("audit: not checked: ")


def test_a_failure_of_the_audit_itself_fails():
    ended = audit("port")
    assert ended.returncode == 1
    assert ended.stdout.startswith("audit: pip-audit failed: ")
