"""`edgewise demo`: see it work on this machine, with no broker, cloud or root."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from agent.cli import EXIT_FAILED, Json, app, fail

if TYPE_CHECKING:
    from agent.demo.acts import ActResult, Report
    from agent.demo.stage import Stage


@app.command()
def demo(
    as_json: Json = False,
    keep: Annotated[bool, typer.Option(help="Leave it all running afterwards.")] = False,
    images: Annotated[int | None, typer.Option(min=1, help="Use only this many images.")] = None,
) -> None:
    """Play four acts against a real daemon: all well, battery low, cloud down, private jobs."""
    from agent.demo.broker import NoBrokerError
    from agent.demo.stage import StageError
    from agent.mqtt.link import LinkError, PublishRefusedError

    try:
        report = asyncio.run(_play(as_json=as_json, keep=keep, images=images))
    except (NoBrokerError, StageError, LinkError, PublishRefusedError) as error:
        raise fail(str(error)) from None
    except asyncio.CancelledError:
        raise fail("ended before it was through") from None
    except TimeoutError:
        raise fail("the daemon did not notice a change of its surroundings in time") from None
    if report.lost or report.leaked:
        raise typer.Exit(EXIT_FAILED)


async def _play(*, as_json: bool, keep: bool, images: int | None) -> Report:
    from rich.console import Console
    from rich.progress import Progress

    from agent.demo.acts import Play, held_out_images
    from agent.demo.stage import set_up

    # With --json, standard output holds the one object and nothing else.
    console = Console(stderr=as_json, highlight=False)
    chosen = held_out_images()[:images]
    task = asyncio.current_task()
    assert task is not None
    # A demo that is told to end takes down what it has started.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with set_up() as stage:
        play = Play(stage, chosen)
        async with play.connected():
            for number, title in enumerate(play.TITLES):
                with Progress(console=console, transient=True) as progress:
                    bar = progress.add_task(f"act {number + 1}: {title}", total=len(chosen))
                    result = await play.act(number, partial(progress.advance, bar))
                console.print(_line(number + 1, result))
        if as_json:
            print(json.dumps(play.report.as_json()), flush=True)
        else:
            report = play.report
            console.print(
                f"{report.jobs} jobs, {report.answered} answered, {report.lost} lost, "
                f"{report.leaked} private jobs leaked"
            )
        if keep:
            _tell_how_to_go_on(console.print, stage)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.Event().wait()
    return play.report


def _line(number: int, result: ActResult) -> object:
    from rich.table import Table

    table = Table(
        *("jobs", "answered", "by route", "accuracy", "p50 ms", "p95 ms"),
        title=f"Act {number}: {result.name}",
        title_justify="left",
        min_width=64,
    )
    table.add_row(
        str(result.jobs),
        str(result.answered),
        ", ".join(f"{route} {count}" for route, count in sorted(result.by_route.items())),
        "-" if result.accuracy is None else f"{result.accuracy:.1%}",
        "-" if result.p50_ms is None else f"{result.p50_ms:.1f}",
        "-" if result.p95_ms is None else f"{result.p95_ms:.1f}",
    )
    return table


def _tell_how_to_go_on(say: object, stage: Stage) -> None:
    from agent.demo.stage import DATA, DEVICE, MODEL

    assert callable(say)
    say(
        f"\nStill running; Ctrl-C ends it.\n"
        f"  metrics:  http://127.0.0.1:{stage.http_port}/metrics\n"
        f"  publish:  edgewise --config {stage.config} submit {MODEL} {DATA / 'images'}\n"
        f"  by hand:  mosquitto_pub -p {stage.mqtt.v5} -V mqttv5 "
        f"-t edgewise/v1/{DEVICE}/jobs/{MODEL} -f {next(iter((DATA / 'images').glob('*.png')))}\n"
        f"  watch:    mosquitto_sub -p {stage.mqtt.v5} -V mqttv5 -t 'edgewise/v1/{DEVICE}/#' -v\n"
        f"  battery:  echo 90 > {stage.folder}/sys/class/power_supply/BAT0/capacity\n"
        f"  log:      {stage.folder}/daemon.log"
    )
