"""The kernel's word that links, addresses or routes have changed, from rtnetlink(7)."""

from __future__ import annotations

import contextlib
import errno
import socket

# The multicast groups of linux/rtnetlink.h, which takes no privilege to join.
RTMGRP_LINK = 0x1
RTMGRP_IPV4_IFADDR = 0x10
RTMGRP_IPV4_ROUTE = 0x40
RTMGRP_IPV6_IFADDR = 0x100
RTMGRP_IPV6_ROUTE = 0x400
GROUPS = (
    RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_IFADDR | RTMGRP_IPV6_ROUTE
)
DRAIN_AT_MOST = 256  # messages at a time: a storm must not keep the event loop from its work


def subscribe() -> socket.socket:
    """Open a non-blocking socket that can be read whenever something has changed.

    Raises:
        OSError: This process may not, or the kernel has no such thing.
    """
    with contextlib.ExitStack() as stack:
        news = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        stack.callback(news.close)
        news.setblocking(False)
        news.bind((0, GROUPS))
        stack.pop_all()
        return news


def drain(news: socket.socket) -> None:
    """Take what has come, and look at none of it: whoever asks reads the present state anyway.

    Raises:
        OSError: The socket is of no use any more.
    """
    for _ in range(DRAIN_AT_MOST):
        try:
            news.recv(1)  # takes a whole message, and drops what doesn't fit
        except BlockingIOError:
            return
        except OSError as error:
            # Some messages were lost, which doesn't matter.
            if error.errno != errno.ENOBUFS:
                raise
