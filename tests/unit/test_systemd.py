"""systemd's notification protocol, over a real socket."""

from __future__ import annotations

import os
import socket

import pytest

from agent import systemd


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """A socket as the service manager's, and the environment that names it."""
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", address)
        yield listening


@pytest.fixture
def watchdog(monkeypatch):
    def set_environment(allowed_us=None, meant_for=None):
        for name, value in (("WATCHDOG_USEC", allowed_us), ("WATCHDOG_PID", meant_for)):
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, str(value))

    return set_environment


def test_the_manager_hears_all_assignments_in_one_message(manager):
    systemd.notify("READY=1", "STATUS=serving 2 models")
    assert manager.recv(4096) == b"READY=1\nSTATUS=serving 2 models"


def test_a_leading_at_sign_means_the_abstract_namespace(monkeypatch, tmp_path):
    name = f"edgewise-test-{os.getpid()}-{tmp_path.name}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(f"\0{name}")
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify("WATCHDOG=1")
        assert listening.recv(4096) == b"WATCHDOG=1"


def test_a_manager_that_does_not_read_holds_nobody_up(manager):
    for number in range(1000):
        systemd.notify("WATCHDOG=1", f"STATUS={number}")
    assert manager.recv(4096) == b"WATCHDOG=1\nSTATUS=0"


@pytest.mark.parametrize("address", [None, ""])
def test_without_a_manager_nothing_is_sent(manager, monkeypatch, address):
    monkeypatch.delenv("NOTIFY_SOCKET")
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    systemd.notify("READY=1")
    with pytest.raises(BlockingIOError):
        manager.recv(4096)


def test_a_manager_that_is_gone_is_no_error(monkeypatch, tmp_path):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "none"))
    systemd.notify("STOPPING=1")


def test_the_watchdog_is_fed_at_half_of_what_is_allowed(watchdog):
    watchdog(30_000_000)
    assert systemd.watchdog_interval_s() == 15.0
    watchdog(30_000_000, os.getpid())
    assert systemd.watchdog_interval_s() == 15.0


@pytest.mark.parametrize(
    ("allowed_us", "meant_for"), [(None, None), ("", None), ("soon", None), (30_000_000, 1)]
)
def test_without_a_watchdog_for_this_process_it_is_not_fed(watchdog, allowed_us, meant_for):
    watchdog(allowed_us, meant_for)
    assert systemd.watchdog_interval_s() is None
