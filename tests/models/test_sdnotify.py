"""What systemd hears, on a real datagram socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from models.sdnotify import keep_watchdog_fed, notify, watchdog_period_s


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """systemd's end of the notification socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.settimeout(10)
        yield sock


def test_states_arrive_one_datagram_each(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname()}
    notify("READY=1", environ)
    notify("STATUS=2 agents", environ)
    assert [systemd.recv(100), systemd.recv(100)] == [b"READY=1", b"STATUS=2 agents"]


def test_an_abstract_socket_is_written_with_an_at_sign() -> None:
    name = f"mas-edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(f"\0{name}")
        sock.settimeout(10)
        notify("READY=1", {"NOTIFY_SOCKET": f"@{name}"})
        assert sock.recv(100) == b"READY=1"


def test_nothing_happens_without_systemd_and_its_absence_is_an_error(tmp_path: Path) -> None:
    notify("READY=1", {})
    with pytest.raises(OSError, match="No such file"):
        notify("READY=1", {"NOTIFY_SOCKET": str(tmp_path / "gone")})


@pytest.mark.parametrize(
    "environ, period_s",
    [
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_fed_twice_in_its_time_and_only_if_it_watches_us(
    environ: dict[str, str], period_s: float | None
) -> None:
    assert watchdog_period_s(environ) == period_s


def test_the_loop_feeds_the_watchdog_again_and_again(systemd: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "2000"}

    async def test() -> list[bytes]:
        feeding = asyncio.create_task(keep_watchdog_fed(environ))
        heard = [await asyncio.to_thread(systemd.recv, 100) for _ in range(3)]
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        return heard

    assert asyncio.run(test()) == [b"WATCHDOG=1"] * 3


def test_without_a_watchdog_there_is_nothing_to_do(systemd: socket.socket) -> None:
    asyncio.run(asyncio.wait_for(keep_watchdog_fed({"NOTIFY_SOCKET": systemd.getsockname()}), 5))
    systemd.setblocking(False)
    with pytest.raises(BlockingIOError):
        systemd.recv(100)
