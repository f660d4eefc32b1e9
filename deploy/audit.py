"""Ask pip-audit whether vulnerabilities are known of any locked dependency.

Exit 1 if there are, or if pip-audit fails. Where the vulnerability service can't be reached, or
does not know a dependency, a line says so ("audit: not checked: …") and that is no failure: it is
no news of the dependencies, and whoever works offline can still have the rest checked.

Usage: deploy/audit.py [OPTION OF PIP-AUDIT ...]
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements.lock", "requirements-build.lock")
TIMEOUT_S = 15
SHOWN = 3
# How pip-audit and requests call it.
UNREACHABLE = re.compile(r"ConnectionError|Timeout|Could not connect|HTTPError|ServiceError")


class UnreachableError(Exception):
    """The vulnerability service can't be reached, and why."""


def pins(lock: str) -> list[str]:
    """Give each ``name==version`` of a lock file, whatever Python it is for."""
    return re.findall(r"^[\w.-]+==[^ ;\\]+", lock, flags=re.MULTILINE)


def without_repeats(pins: Iterable[str]) -> Iterator[list[str]]:
    """Part pins into lists that have each name once, as pip-audit wants them."""
    left = list(dict.fromkeys(pins))
    while left:
        taken = {pin.partition("==")[0]: pin for pin in reversed(left)}
        yield sorted(taken.values())
        left = [pin for pin in left if pin not in taken.values()]


def audit(pins: Iterable[str], options: Iterable[str]) -> list[dict[str, Any]]:
    """Give what pip-audit says of each pin.

    Raises:
        UnreachableError: It can't ask.
        ValueError: It fails.
    """
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(pins))
        file.flush()
        command = [
            *(sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--format=json"),
            *("--progress-spinner=off", f"--timeout={TIMEOUT_S}", "--requirement", file.name),
        ]
        ended = subprocess.run([*command, *options], capture_output=True, text=True, check=False)
    if ended.stdout:
        return list(json.loads(ended.stdout)["dependencies"])
    why = (ended.stderr.strip().splitlines() or ["it says nothing"])[-1][:200]
    raise UnreachableError(why) if UNREACHABLE.search(ended.stderr) else ValueError(why)


def main() -> int:
    """Audit the locks; give the exit status."""
    locked = [pin for name in LOCKS for pin in pins((ROOT / name).read_text())]
    try:
        audited = [one for part in without_repeats(locked) for one in audit(part, sys.argv[1:])]
    except UnreachableError as error:
        print(f"audit: not checked: {error}")
        return 0
    except ValueError as error:
        print(f"audit: pip-audit failed: {error}")
        return 1
    unknown = [one["name"] for one in audited if "skip_reason" in one]
    if unknown:
        some = ", ".join(unknown[:SHOWN]) + (", …" if len(unknown) > SHOWN else "")
        print(
            f"audit: not checked: {len(unknown)} of {len(audited)} locked dependencies, "
            f"which the vulnerability service does not know ({some})"
        )
    found = [(one, flaw) for one in audited for flaw in one.get("vulns", [])]
    for one, flaw in found:
        fixed = ", ".join(flaw["fix_versions"]) or "none yet"
        print(f"audit: {one['name']} {one['version']} has {flaw['id']}; fixed in: {fixed}")
    if not found and len(unknown) < len(audited):
        print(f"audit: nothing is known against {len(audited) - len(unknown)} dependencies")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
