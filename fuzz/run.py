"""Fuzzes each surface in a process of its own, and prints a line for each.

Started by ``make fuzz ARGS='[SURFACE…] [--runs N] [--seconds S] [--keep]'``. An input that crashes,
hangs or grows is left in build/fuzz/findings; exits 1 then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fuzz import seeds

ROOT = Path(__file__).parents[1]
CORPUS = ROOT / "fuzz" / "corpus"
BUILD = ROOT / "build" / "fuzz"
FINDINGS = BUILD / "findings"
MODELS = "models"
# Bytes of an input at most; and of the memory that libFuzzer stops at, though `Watch` does before.
LONGEST, RSS_LIMIT_MB = 4096, 600
# A hang that takes no processor time; what takes some is `Watch`'s.
TIMEOUT_S = 30
TITLES = ("surface", "inputs", "inputs/s", "coverage", "new", "peak MB", "slowest ms", "verdict")
WIDTHS = (12, 10, 9, 9, 6, 8, 11, 0)


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one surface."""

    surface: str
    inputs: int
    per_s: float
    coverage: int | None  # edges of our own code
    new: int | None  # inputs that were added to the corpus
    peak_mb: float
    slowest_s: float | None
    verdict: str
    good: bool

    @property
    def line(self) -> str:
        """The line of the table."""
        slowest = None if self.slowest_s is None else round(self.slowest_s * 1000, 1)
        cells = (
            *(self.surface, self.inputs, round(self.per_s), self.coverage, self.new),
            *(round(self.peak_mb), slowest, self.verdict),
        )
        return _line("-" if cell is None else str(cell) for cell in cells)


def fuzz(surface: str, runs: int, seconds: int, *, keep: bool) -> Result:
    """Fuzz a surface: so many inputs, or for so long, whichever ends first."""
    work = BUILD / surface
    kept = CORPUS / surface
    seeds.write(work, surface)
    kept.mkdir(parents=True, exist_ok=True)
    FINDINGS.mkdir(parents=True, exist_ok=True)
    slowest = BUILD / f"{surface}.slowest"
    slowest.unlink(missing_ok=True)
    flags = [
        *(f"-runs={runs}", f"-max_total_time={seconds}", f"-timeout={TIMEOUT_S}"),
        *(f"-max_len={LONGEST}", f"-rss_limit_mb={RSS_LIMIT_MB}", "-print_final_stats=1"),
        f"-artifact_prefix={FINDINGS / surface}-",
    ]
    ran = _harness(surface, slowest, work, kept, *flags)
    (BUILD / f"{surface}.log").write_text(ran.stderr, encoding="utf-8")
    if keep:
        _harness(surface, slowest.with_suffix(".merge"), kept, work, "-set_cover_merge=1")
    stats = dict(re.findall(r"stat::(\w+):\s+(\d+)", ran.stderr))
    covered = re.findall(r"\bcov: (\d+)", ran.stderr)
    good = ran.returncode == 0
    raised = re.findall(r"Uncaught Python exception: ===\n(.*)", ran.stderr)
    verdict = "good" if good else f"{''.join(raised[:1]) or 'ended'}; see {FINDINGS}/{surface}-*"
    return Result(
        surface,
        int(stats.get("number_of_executed_units", 0)),
        float(stats.get("average_exec_per_sec", 0)),
        int(covered[-1]) if covered else None,
        int(stats.get("new_units_added", 0)),
        float(stats.get("peak_rss_mb", 0)),
        float(slowest.read_text().split("\n")[0]) if slowest.exists() else None,
        verdict,
        good,
    )


def fuzz_models(runs: int, seconds: int) -> Result:
    """Load mutated models."""
    command = [sys.executable, "-m", "fuzz.models", f"--runs={runs}", f"--seconds={seconds}"]
    ran = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    told = json.loads(ran.stdout)
    ends = ", ".join(f"{count} {how}" for how, count in sorted(told["ends"].items()))
    per_s = told["inputs"] / max(told["seconds"], 0.1)
    verdict = f"{'good' if told['good'] else 'bad'}: {ends}"
    return Result(
        MODELS, told["inputs"], per_s, None, None, told["peak_mb"], None, verdict, told["good"]
    )


def main() -> int:
    """Fuzz, and tell by the exit code whether all was well."""
    known = sorted(
        file.stem for file in (ROOT / "fuzz" / "surfaces").glob("*.py") if file.stem[0] != "_"
    )
    parser = argparse.ArgumentParser(description="coverage-guided fuzzing")
    parser.add_argument("surfaces", nargs="*", metavar="SURFACE")
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each surface")
    parser.add_argument("--seconds", type=int, default=60, help="for each surface, at most")
    parser.add_argument("--keep", action="store_true", help="add to the corpus what covers more")
    given = parser.parse_args()
    if unknown := set(given.surfaces) - {*known, MODELS}:
        parser.error(f"unknown {', '.join(sorted(unknown))}; known: {', '.join([*known, MODELS])}")
    if importlib.util.find_spec("atheris") is None:
        print("atheris is not installed: there are wheels for x86-64 only", file=sys.stderr)
        return 2
    print(_line(TITLES), flush=True)
    good = True
    for surface in given.surfaces or [*known, MODELS]:
        if surface == MODELS:
            result = fuzz_models(given.runs, given.seconds)
        else:
            result = fuzz(surface, given.runs, given.seconds, keep=given.keep)
        print(result.line, flush=True)
        good = good and result.good
    return 0 if good else 1


def _harness(surface: str, slowest: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    # Warnings would be told of once for each of their texts.
    command = [sys.executable, "-W", "ignore", "-m", "fuzz.harness", surface, slowest, *arguments]
    return subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        check=False,
    )


def _line(cells: Iterable[str]) -> str:
    pairs = zip(cells, WIDTHS, strict=True)
    return "  ".join(
        cell.rjust(width) if 0 < number < len(WIDTHS) - 1 else cell.ljust(width)
        for number, (cell, width) in enumerate(pairs)
    )


if __name__ == "__main__":
    sys.exit(main())
