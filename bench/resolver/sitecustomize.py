"""A name that resolves while a file is there: DNS that a benchmark can take away.

Python imports this at its start where the folder is on PYTHONPATH. The name and the file come from
BENCH_NAME and BENCH_NAME_FILE.
"""

from __future__ import annotations

import os
import socket
import time
from typing import Any

_real = socket.getaddrinfo
_name = os.environ.get("BENCH_NAME")
_file = os.environ.get("BENCH_NAME_FILE", "")
# What a resolver takes that waits for a server's answer once, with `options timeout:1 attempts:1`.
TIMEOUT_S = 1.0


def _resolve(host: Any, *arguments: Any, **options: Any) -> Any:
    if host != _name:
        return _real(host, *arguments, **options)
    if not os.path.exists(_file):  # noqa: PTH110 - this runs in every process, at its start
        time.sleep(TIMEOUT_S)
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
    return _real("127.0.0.1", *arguments, **options)


if _name is not None:
    socket.getaddrinfo = _resolve
