"""`edgewise submit`: publish files as jobs and wait for their answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from agent.cli import EXIT_FAILED, Json, app, fail, fail_config, load_config
from agent.config import Config, ConfigError

if TYPE_CHECKING:
    from agent.mqtt.client import Submission

IMAGES = (".png", ".jpg", ".jpeg")
SUFFIXES = (*IMAGES, ".npy", ".json")
IN_FLIGHT = 64
STATE_TIMEOUT_S = 2.0
MAX_SHOWN = 4  # numbers of an output that still fit a table
GRACE_S = 5.0  # for an answer to travel, beyond its job's deadline


@dataclass(frozen=True, slots=True)
class _Input:
    """A model's input, as the device's state tells it."""

    name: str
    datatype: str


@dataclass(frozen=True, slots=True)
class _Sent:
    """A file's answer, and how long it took to come."""

    file: Path
    seconds: float
    answer: dict[str, Any]


@app.command()
def submit(
    ctx: typer.Context,
    model: Annotated[str, typer.Argument(help="The model's name on the device.")],
    files: Annotated[list[Path], typer.Argument(help="Images, .npy, .json, or folders of them.")],
    as_json: Json = False,
    deadline_ms: Annotated[
        float | None, typer.Option(min=1, help="From receipt; else limits.default_deadline_ms.")
    ] = None,
    priority: Annotated[
        int | None, typer.Option(min=0, max=9, help="Higher goes first; else 5.")
    ] = None,
    private: Annotated[bool, typer.Option(help="Never leaves the device.")] = False,
    placement: Annotated[
        str | None,
        typer.Option(help="One of auto, only_local, prefer_local, prefer_cloud, only_cloud."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="Another device than our own.")] = None,
) -> None:
    """Publish files as jobs for MODEL, and wait for the answers."""
    config = load_config(ctx)
    parameters: dict[str, Any] = {
        "deadline_ms": deadline_ms,
        "priority": priority,
        "privacy": "device" if private else None,
        "placement": placement,
    }
    chosen = {name: value for name, value in parameters.items() if value is not None}
    paths = list(_expand(files))
    if config.mqtt.protocol != "5" and any(path.suffix.lower() in IMAGES for path in paths):
        raise fail("an image's id travels in MQTT 5's properties, and mqtt.protocol is 3.1.1")
    timeout_s = (deadline_ms or config.limits.default_deadline_ms) / 1000 + GRACE_S
    with _progress_bar(len(paths), quiet=as_json) as advance:
        sent = asyncio.run(_submit_all(config, device, model, paths, chosen, timeout_s, advance))
    if as_json:
        print(json.dumps([{"file": str(one.file), **one.answer} for one in sent]))
    else:
        _print_table(sent)
    if any("error" in one.answer for one in sent):
        raise typer.Exit(EXIT_FAILED)


async def _submit_all(
    config: Config,
    device: str | None,
    model: str,
    paths: list[Path],
    parameters: dict[str, Any],
    timeout_s: float,
    advance: Callable[[], None],
) -> list[_Sent]:
    from agent.job import make_id
    from agent.mqtt.address import broker
    from agent.mqtt.client import Client
    from agent.mqtt.link import LinkError, PublishRefusedError

    try:
        client = Client(
            broker(config, client_id=f"edgewise-submit-{make_id()}"), device or config.device.id
        )
    except ConfigError as error:
        raise fail_config(error) from None
    slots = asyncio.Semaphore(IN_FLIGHT)

    async def one(path: Path, port: _Input | None) -> _Sent:
        async with slots:
            submission = _read(path, parameters, port)
            began = time.perf_counter()
            try:
                async with asyncio.timeout(timeout_s):
                    answer = await client.submit(model, submission)
            except TimeoutError:
                answer = {
                    "id": submission.id,
                    "error": f"no answer within {timeout_s:g} s: is the daemon running?",
                }
            advance()
            return _Sent(path, time.perf_counter() - began, answer)

    try:
        async with client.connected():
            port = None
            if any(path.suffix.lower() == ".npy" for path in paths):
                port = _input_of(model, await client.retained("state", STATE_TIMEOUT_S))
            return await asyncio.gather(*(one(path, port) for path in paths))
    except (LinkError, PublishRefusedError, TimeoutError) as error:
        raise fail(f"broker {config.mqtt.url}: {str(error) or 'no answer'}") from None


def _expand(files: list[Path]) -> Iterator[Path]:
    for file in files:
        if file.is_dir():
            inside = sorted(p for p in file.iterdir() if p.suffix.lower() in SUFFIXES)
            if not inside:
                raise typer.BadParameter(f"{file} holds no image, .npy or .json file")
            yield from inside
        elif file.suffix.lower() not in SUFFIXES:
            raise typer.BadParameter(f"{file}: want one of {', '.join(SUFFIXES)}")
        elif not file.is_file():
            raise typer.BadParameter(f"{file}: no such file")
        else:
            yield file


def _input_of(model: str, state: dict[str, Any] | None) -> _Input:
    """Look up in the device's state what the model's one input is called."""
    inputs = (state or {}).get("models", {}).get(model, {}).get("inputs", [])
    if len(inputs) != 1:
        raise fail(
            f"can't tell what to call the array: the device lists no single input of '{model}'"
        )
    return _Input(inputs[0]["name"], inputs[0]["datatype"])


def _read(path: Path, parameters: dict[str, Any], port: _Input | None) -> Submission:
    from agent.job import ID_PATTERN, make_id
    from agent.mqtt.client import Submission
    from agent.wire import oip, tensors

    job_id = make_id()
    suffix = path.suffix.lower()
    if suffix in IMAGES:
        words = tuple((name, str(value)) for name, value in parameters.items())
        kind = "image/png" if suffix == ".png" else "image/jpeg"
        return Submission(job_id, path.read_bytes(), content_type=kind, properties=words)
    if suffix == ".npy":
        import numpy as np

        assert port is not None
        try:
            array = np.load(path, allow_pickle=False)
            if array.dtype == np.float64 and port.datatype == "FP32":
                array = array.astype(np.float32)
            tensor = tensors.from_array(port.name, array)
        except (ValueError, KeyError, OSError) as error:
            raise fail(f"{path}: no numeric array: {error}") from None
        head = {"id": job_id, "parameters": parameters}
        payload, length = oip.encode(head, "inputs", [tensor], binary=True)
        return Submission(job_id, payload, header_length=length)
    try:
        body = json.loads(path.read_bytes())
    except ValueError as error:
        raise fail(f"{path}: not JSON: {error}") from None
    if not isinstance(body, dict):
        raise fail(f"{path}: want an infer request, a JSON object")
    said = body.get("parameters") or {}
    if not isinstance(said, dict):
        raise fail(f"{path}: parameters must be a JSON object")
    body_id = body.get("id", job_id)
    if not isinstance(body_id, str) or not ID_PATTERN.fullmatch(body_id):
        raise fail(f"{path}: the id must be 1 to 128 characters of A-Z a-z 0-9 . _ : -")
    # The answer is to be printed: as JSON.
    chosen = {**said, **parameters, "binary_data_output": False}
    body = {**body, "id": body_id, "parameters": chosen}
    return Submission(body_id, json.dumps(body).encode())


@contextlib.contextmanager
def _progress_bar(total: int, *, quiet: bool) -> Iterator[Callable[[], None]]:
    """Show a progress bar on standard error where there are many files and somebody looks."""
    if quiet or total == 1:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("jobs", total=total)
        yield lambda: progress.advance(task)


def _print_table(sent: list[_Sent]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("file", "route", "answer", "confidence", "ms", box=None)
    for one in sent:
        parameters = one.answer.get("parameters", {})
        confidence = parameters.get("confidence")
        table.add_row(
            one.file.name,
            ":".join(filter(None, (parameters.get("route"), parameters.get("endpoint")))) or "-",
            _headline(one.answer),
            "-" if confidence is None else f"{confidence:.3f}",
            f"{one.seconds * 1000:.1f}",
        )
    Console().print(table)


def _headline(answer: dict[str, Any]) -> str:
    """Give an answer in a word: its error, its best label, or its outputs' shapes."""
    if "error" in answer:
        return f"{answer.get('parameters', {}).get('code', 'error')}: {answer['error']}"
    outputs = {output["name"]: output for output in answer["outputs"]}
    if "label" in outputs:
        return str(outputs["label"]["data"][0])
    if all(math.prod(output["shape"]) <= MAX_SHOWN for output in outputs.values()):
        return ", ".join(f"{name} {output['data']}" for name, output in outputs.items())
    return ", ".join(f"{name} {output['shape']}" for name, output in outputs.items())
