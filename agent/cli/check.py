"""`edgewise check`: validate the configuration, its models and its policy."""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import dataclass, field

import typer

from agent.cli import EXIT_CONFIG, Json, app
from agent.config import Config, ConfigError, load


@dataclass(slots=True)
class _Findings:
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    models: list[str] = field(default_factory=list)


@app.command()
def check(ctx: typer.Context, as_json: Json = False) -> None:
    """Validate the configuration, models and policy; exit 0, or 78 and say what is wrong."""
    findings = _Findings()
    try:
        config = load(ctx.obj)
    except ConfigError as error:
        findings.errors.append(str(error))
    else:
        asyncio.run(_check(config, str(ctx.obj), findings))
    if as_json:
        print(
            json.dumps(
                {
                    "ok": not findings.errors,
                    "errors": findings.errors,
                    "warnings": findings.warnings,
                    "models": findings.models,
                }
            )
        )
    else:
        for warning in findings.warnings:
            print(f"warning: {warning}", file=sys.stderr)
        for problem in findings.errors:
            print(f"edgewise: {problem}", file=sys.stderr)
        if not findings.errors:
            print(f"{ctx.obj}: fine; models: {', '.join(findings.models) or 'none'}")
    if findings.errors:
        raise typer.Exit(EXIT_CONFIG)


async def _check(config: Config, where: str, findings: _Findings) -> None:
    from agent import daemon
    from agent.cli import openness
    from agent.routes.local import probe

    try:
        built = daemon.Daemon(config, lambda: config)
        for cloud in built.clouds:
            await cloud.start()
            await cloud.stop()
    except ConfigError as error:
        findings.errors.append(f"{where}: {error.key or error.where}: {error.reason}")
    except OSError as error:
        findings.errors.append(f"{where}: {error.filename or 'ca_file'}: {error.strerror}")
    findings.warnings += [f"{where}: {found}" for found in openness.find(config)]
    for name, model in config.models.items():
        if model.path is not None and model.sha256 is None:
            findings.warnings.append(
                f"{where}: models.{name}.sha256 is missing: a changed file would not be noticed"
            )
        image = model.image_input
        if model.path is None and image is not None and image.size is None:
            sizeless = [served.endpoint for served in model.cloud if served.image == "tensor"]
            if sizeless:
                findings.warnings.append(
                    f"{where}: models.{name}.preprocess.size is missing: images are sized as "
                    f"endpoint '{sizeless[0]}' says, if it does"
                )
    sound, refused = await probe(config.models, config.local)
    findings.models += sorted(sound)
    findings.errors += [f"{where}: models.{name}: {why}" for name, why in refused.items()]
