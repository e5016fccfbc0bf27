"""Tells systemd how a service is doing (sd_notify protocol); does nothing when systemd did not start it."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Send e.g. `READY=1`, `STATUS=...`, `WATCHDOG=1` or `STOPPING=1`. Raises OSError when systemd's socket is gone."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.sendall(state.encode())


def watchdog_period_s(environ: Mapping[str, str] = os.environ) -> float | None:
    """Half of systemd's watchdog interval for this process, or None when it watches nobody or somebody else."""
    usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
    if not usec.isdigit() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


async def keep_watchdog_fed(environ: Mapping[str, str] = os.environ) -> None:
    """Feed systemd's watchdog from the event loop, so that a stuck loop is noticed and restarted."""
    period_s = watchdog_period_s(environ)
    while period_s is not None:
        notify("WATCHDOG=1", environ)
        await asyncio.sleep(period_s)
