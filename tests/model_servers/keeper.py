"""Runs a command, and ends with it all that it started.

Started as ``python keeper.py COMMAND…``. It ends when its standard input does, so when whoever
started it is gone, however that came. Ray leaves a dozen processes behind that no signal to a
process group reaches; but they stay in their session.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from pathlib import Path


def kill_session(leader: int) -> None:
    """Kill all processes of a session, and those that they start meanwhile."""
    while True:
        found = False
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(ValueError, ProcessLookupError, PermissionError):
                pid = int(entry.name)
                if os.getsid(pid) == leader and _is_alive(entry):
                    found = True
                    os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _is_alive(entry: Path) -> bool:
    with contextlib.suppress(OSError):
        return (entry / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def main() -> int:
    # It must outlive a Ctrl-C, to clean up after it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, start_new_session=True)
    ended = os.pidfd_open(process.pid)
    try:
        select.select([sys.stdin, ended], [], [])
        return process.poll() or 0
    finally:
        kill_session(process.pid)
        process.wait()


if __name__ == "__main__":
    sys.exit(main())
