"""The command line. Exit codes: 0 fine, 1 the operation failed, 2 wrong usage, 78 a bad config."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agent import __version__
from agent.config import Config, ConfigError, load

if TYPE_CHECKING:
    from rich.console import Console

    from agent.plugins import LoadedPolicy

DEFAULT_PATH = Path("/etc/edgewise/edgewise.toml")
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_CONFIG = 78  # EX_CONFIG of sysexits.h; the unit's RestartPreventExitStatus

app = typer.Typer(
    name="edgewise",
    help="Route inference jobs to this device or to the cloud, and say why.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _print_version(asked: bool) -> None:  # noqa: FBT001 - typer's callback form
    if asked:
        print(f"edgewise {__version__}")
        raise typer.Exit


@app.callback()
def _global(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            envvar="EDGEWISE_CONFIG",
            help=f"The configuration's main file; by default {DEFAULT_PATH}.",
        ),
    ] = None,
    version: Annotated[  # noqa: ARG001 - handled by its callback
        bool, typer.Option("--version", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    ctx.obj = config or DEFAULT_PATH


def load_config(ctx: typer.Context) -> Config:
    """Load the configuration that the global option names, or end with 78."""
    path: Path = ctx.obj
    try:
        return load(path)
    except ConfigError as error:
        raise fail_config(error) from None


def fail_config(error: ConfigError) -> typer.Exit:
    """Print a bad configuration's one clear line; give the exit to raise."""
    print(f"edgewise: {error}", file=sys.stderr)
    return typer.Exit(EXIT_CONFIG)


def fail(message: str) -> typer.Exit:
    """Print why the operation failed, in one line; give the exit to raise."""
    print(f"edgewise: {message}", file=sys.stderr)
    return typer.Exit(EXIT_FAILED)


def fail_usage(message: str) -> typer.Exit:
    """Print what of the call is wrong, in one line; give the exit to raise."""
    print(f"edgewise: {message}", file=sys.stderr)
    return typer.Exit(EXIT_USAGE)


def load_policies(specs: list[str]) -> dict[str, LoadedPolicy]:
    """Make the policies that `--policy` names, or end with 2."""
    from agent.simulate import policies

    loaded = {}
    for spec in specs:
        try:
            loaded[spec] = policies.load(spec)
        except ConfigError as error:
            raise fail_usage(f"--policy {spec}: {error.reason}") from None
    return loaded


def console(*, markup: bool = False) -> Console:
    """Give what to print tables with; piped, nothing is gained by folding lines."""
    from rich.console import Console

    found = Console(highlight=False, markup=markup)
    return found if found.is_terminal else Console(highlight=False, markup=markup, width=200)


@app.command()
def run(ctx: typer.Context) -> None:
    """Run the daemon."""
    from agent import daemon

    config = load_config(ctx)
    try:
        daemon.run(config, lambda: load(ctx.obj))
    except ConfigError as error:
        # Found after loading, when it is no longer known which file said it.
        found = ConfigError(str(ctx.obj), error.key or error.where, error.reason)
        raise fail_config(found) from None
    except daemon.StartError as error:
        raise fail(str(error)) from None


def main() -> None:
    """Run the command line; --config may stand before or after the command."""
    # Each module adds its command to the app; each imports what it needs only when it runs.
    from agent.cli import (  # noqa: F401
        check,
        demo,
        explain,
        policies,
        replay,
        simulate,
        status,
        submit,
    )

    try:
        app(_global_options_first(sys.argv[1:]), prog_name="edgewise")
    except BrokenPipeError:
        # The reader of our output has gone (`edgewise … | head`).
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(EXIT_FAILED)


def _global_options_first(arguments: list[str]) -> list[str]:
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
        elif word == "--config":
            first += [word, *(value for value in [next(words, None)] if value is not None)]
        elif word.startswith("--config="):
            first.append(word)
        else:
            rest.append(word)
    return first + rest
