"""Runs one surface's target under libFuzzer, and holds each input to its time and memory.

Started as ``python -m fuzz.harness SURFACE SLOWEST CORPUS… [-flags of libFuzzer]``. SLOWEST is a
file: the time that the slowest input took in seconds, and in the line below that input in hex.
"""

from __future__ import annotations

import importlib
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import atheris

from fuzz.mutations import Mutation

# What must hold of each input: seconds, and MiB of the whole process at its largest.
LONGEST_S = 1.0
MOST_MB = 300
# On a machine that does other things too, an input is slow if it is so each time.
TIMES = 3
SHARE_OF_HAVOC = 0.3

Target = Callable[[bytes], None]


class TooSlowError(Exception):
    """An input took too long."""


class TooLargeError(Exception):
    """An input took too much memory."""


class Watch:
    """Runs inputs, and raises where one takes more than it may."""

    def __init__(self, target: Target, slowest: Path) -> None:
        """Set it up.

        Args:
            target: Takes an input.
            slowest: Where the slowest input is told of.
        """
        self._target = target
        self._slowest = slowest
        self._slowest_s = 0.0

    def __call__(self, data: bytes) -> None:
        """Run an input.

        Raises:
            TooSlowError: It took longer than `LONGEST_S`, several times.
            TooLargeError: The process took more than `MOST_MB`.
        """
        took_s = self._timed(data)
        if took_s > LONGEST_S:
            took_s = min(took_s, *(self._timed(data) for _ in range(TIMES - 1)))
        if took_s > self._slowest_s:
            self._slowest_s = took_s
            self._slowest.write_text(f"{took_s:.6f}\n{data.hex()}\n")
        if took_s > LONGEST_S:
            raise TooSlowError(f"an input of {len(data)} bytes took {took_s:.2f} s")
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if peak_mb > MOST_MB:
            raise TooLargeError(f"an input of {len(data)} bytes took memory to {peak_mb:.0f} MiB")

    def _timed(self, data: bytes) -> float:
        # Both clocks: beside other programs the one goes on while the input waits for a turn.
        began, busy = time.perf_counter(), time.process_time()
        self._target(data)
        return min(time.perf_counter() - began, time.process_time() - busy)


def mutator(mutation: Mutation) -> Callable[[bytes, int, int], bytes]:
    """Make a custom mutator of libFuzzer's form."""

    def havoc(data: bytes) -> bytes:
        grown = len(data) + max(16, len(data) // 4)
        return bytes(atheris.Mutate(data, grown))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        dice = random.Random(seed)
        if not data or dice.random() < SHARE_OF_HAVOC:
            return bytes(atheris.Mutate(data, max_size))
        return mutation(data, dice, havoc)[:max_size]

    return mutate


def main() -> None:
    """Fuzz until libFuzzer's flags say that it is enough; it ends the process."""
    name, slowest, *flags = sys.argv[1:]
    with atheris.instrument_imports(
        include=["agent", "policies", "PIL.PngImagePlugin", "PIL.JpegImagePlugin"],
        enable_loader_override=False,
    ):
        surface = importlib.import_module(f"fuzz.surfaces.{name}")
    mutation: Mutation | None = getattr(surface, "MUTATION", None)
    # A merge starts its second process by this, through a shell.
    program = f"{sys.executable} -W ignore -m fuzz.harness {name} {slowest}"
    arguments = [program, *flags]
    watch = Watch(surface.target, Path(slowest))
    if mutation is None:
        atheris.Setup(arguments, watch)
    else:
        atheris.Setup(arguments, watch, custom_mutator=mutator(mutation))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
