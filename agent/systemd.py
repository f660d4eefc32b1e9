"""systemd's notification protocol: sd_notify(3)."""

from __future__ import annotations

import contextlib
import os
import socket
import time


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` to the service manager; nothing where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    # A leading @ stands for the abstract namespace, whose names begin with a null byte.
    target = f"\0{address[1:]}" if address.startswith("@") else address
    kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    # A manager that is gone, or reads nothing for a while, is no reason to stop serving.
    with (
        contextlib.suppress(OSError),
        socket.socket(socket.AF_UNIX, kind) as connection,
    ):
        connection.sendto("\n".join(assignments).encode(), target)


def notify_reloading() -> None:
    """Say that the configuration is read anew; ``READY=1`` ends that."""
    now_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
    notify("RELOADING=1", f"MONOTONIC_USEC={now_us}")


def watchdog_interval_s() -> float | None:
    """How often to send ``WATCHDOG=1``: half of what the unit allows; None without a watchdog."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    meant_for = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not allowed_us.isdecimal() or meant_for != str(os.getpid()):
        return None
    return int(allowed_us) / 1e6 / 2
