"""A run from the command line: its folder, its end from outside, its report and its exit status."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from broker import StageError


class Run(Protocol):
    """Something that is run, and then tells whether all held."""

    @property
    def sound(self) -> bool:
        """Whether all held."""

    async def make(self) -> None:
        """Run it all.

        Raises:
            StageError: It could not be run.
        """

    def report(self, logs: Path | None) -> None:
        """Print what came of it; `logs` is where its logs stay, if they do."""


def conduct(name: str, make: Callable[[Path], Run], kept: Path | None) -> int:
    """Make a run in a folder, and report; give the exit status.

    Args:
        name: What to call it.
        make: Makes it, in this folder.
        kept: A new folder, which stays; None: a temporary one, which stays only if anything failed.
    """
    if kept is not None:
        kept.mkdir(parents=True)
    folder = kept or Path(tempfile.mkdtemp(prefix=f"edgewise-{name}-"))
    stays = True
    try:
        run = make(folder.resolve())
        asyncio.run(_until_done(run))
        stays = kept is not None or not run.sound
        run.report(folder if stays else None)
    except StageError as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, asyncio.CancelledError):
        stays = kept is not None
        return 130
    finally:
        if not stays:
            shutil.rmtree(folder, ignore_errors=True)
    return 0 if run.sound else 1


async def _until_done(run: Run) -> None:
    # Ended from outside, the stage is still taken down: mounts and processes would stay.
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await run.make()
