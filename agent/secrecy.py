"""Keeps the daemon's memory, which holds passwords and keys, to itself."""

from __future__ import annotations

import ctypes
import os
import resource

import structlog

log = structlog.get_logger(__name__)

PR_SET_DUMPABLE = 4  # linux/prctl.h


def keep() -> None:
    """Leave no core dumps, let no other process of this user look in, and make files our own.

    A process that is not dumpable writes no core, to no handler either (core(5)), and can't be
    traced by its own user (ptrace(2)). That ends where it starts another program, so the limit
    of zero, which is handed down, keeps the workers from leaving jobs behind in a file.
    """
    os.umask(0o077)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
        log.warning("memory_not_kept", error=os.strerror(ctypes.get_errno()))
