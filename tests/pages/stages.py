"""What a page takes for granted, such as a broker: set up before it is followed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pages.markdown import ROOT
from pages.terminal import Terminal

DATA = ROOT / "agent" / "demo" / "data"
IMAGE = DATA / "images" / "0021-1.png"
UP = "until (exec 5<>/dev/tcp/127.0.0.1/{port}) 2>/dev/null; do sleep 0.02; done"
DEVICE = """
[device]
id = "cam"
state_dir = "state"
"""
DIGITS = f"""
[models.digits]
path = "{DATA}/digits_small.tflite"
labels = "{DATA}/digits.labels.txt"
preprocess = "image"
"""
TALK = """
[models.talk]
cloud = [{ endpoint = "llm", name = "gpt-4.1-mini" }]
[endpoints.llm]
url = "http://127.0.0.1:8081"
protocol = "openai"
"""
# An endpoint that takes requests and can't do anything with them.
OUT_OF_ORDER = """
from aiohttp import web
async def infer(request): return web.Response(status=500, text="out of order")
async def well(request): return web.json_response({})
app = web.Application()
app.router.add_post("/v2/models/digits/infer", infer)
app.router.add_get("/v2/health/live", well)
web.run_app(app, host="127.0.0.1", port=8080)
"""
ASKS_THE_CLOUD_FIRST = """
cloud = [{ endpoint = "lab" }]
[endpoints.lab]
url = "http://127.0.0.1:8080"
[policy]
name = "prefer-cloud"
"""


@dataclass(frozen=True)
class Stage:
    """Where a page is followed, and what is there by then."""

    in_clone: bool = True
    set_up: tuple[Callable[[Terminal], None], ...] = ()
    as_root: bool = False  # really, and not in a user's namespace: it gives files away


def broker(terminal: Terminal) -> None:
    """Start mosquitto as Debian's package does: on its usual port, for this machine only."""
    # In a namespace of an ordinary user there is none but root to run as.
    terminal.save("/etc/broker.conf", "listener 1883 127.0.0.1\nallow_anonymous true\nuser root\n")
    terminal.do("mosquitto --daemon --config-file /etc/broker.conf")
    terminal.do(UP.format(port=1883))


def text_model(terminal: Terminal) -> None:
    """A daemon whose text model is a stand-in: it says the words backwards."""
    serve = "from standins.openai import OpenAi; from aiohttp import web;"
    serve += "web.run_app(OpenAi().application(), host='127.0.0.1', port=8081)"
    terminal.do(f'PYTHONPATH="$PYTHONPATH:{ROOT}/tests" python -c "{serve}" >/dev/null 2>&1 &')
    terminal.do(UP.format(port=8081))
    daemon(terminal, DEVICE + TALK)


def a_device(terminal: Terminal) -> None:
    """A daemon with a model."""
    daemon(terminal, DEVICE + DIGITS)


def a_job_whose_endpoint_failed(terminal: Terminal) -> None:
    """A daemon that has sent `frame-17` to an endpoint in vain."""
    terminal.save("lab.py", OUT_OF_ORDER)
    terminal.do("python lab.py >/dev/null 2>&1 &")
    terminal.do(UP.format(port=8080))
    daemon(terminal, DEVICE + DIGITS + ASKS_THE_CLOUD_FIRST)
    terminal.do(
        "curl --silent --fail --output /dev/null -H 'Content-Type: image/png' "
        f"-H 'Edgewise-Id: frame-17' --data-binary @{IMAGE} "
        "http://127.0.0.1:9464/v2/models/digits/infer"
    )


def daemon(terminal: Terminal, config: str) -> None:
    """Start a daemon in the background, and wait until it is ready."""
    terminal.save("edgewise.toml", config)
    terminal.do("export EDGEWISE_CONFIG=$PWD/edgewise.toml")
    terminal.do("systemctl restart edgewise")


def a_traced_camera(terminal: Terminal) -> None:
    """A device with a model and a picture, and a collector that is a stand-in."""
    serve = "from standins.collector import Collector; from aiohttp import web;"
    serve += "web.run_app(Collector().application(), host='127.0.0.1', port=4318)"
    terminal.do(f'PYTHONPATH="$PYTHONPATH:{ROOT}/tests" python -c "{serve}" >/dev/null 2>&1 &')
    terminal.do(UP.format(port=4318))
    terminal.save("/etc/edgewise/edgewise.toml", DEVICE + DIGITS)
    terminal.do(f"cp {IMAGE} frame.png")


def a_camera_s_models(terminal: Terminal) -> None:
    """A device that has its model, a picture, and a name for the broker's address."""
    terminal.do("echo 127.0.0.1 broker.example.org >>/etc/hosts")
    terminal.save("/etc/edgewise/edgewise.d/models.toml", DIGITS)
    terminal.do(f"cp {IMAGE} frame.png")


STAGES = {
    "README.md": Stage(set_up=(broker,)),
    "docs/endpoints.md": Stage(set_up=(broker, text_model)),
    "docs/explain.md": Stage(set_up=(broker, a_job_whose_endpoint_failed)),
    "docs/models.md": Stage(set_up=(broker,)),
    "docs/policies.md": Stage(in_clone=False),
    "docs/size-a-device.md": Stage(set_up=(broker, a_device)),
    "docs/tutorial.md": Stage(set_up=(broker,)),
    "docs/tracing.md": Stage(set_up=(broker, a_traced_camera)),
    "docs/secure-the-broker.md": Stage(set_up=(a_camera_s_models,), as_root=True),
}
PLAIN = Stage()
