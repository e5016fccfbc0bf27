"""The Raspberry Pi's firmware: asking it through `vcgencmd`, and what its throttling bits mean."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from pathlib import Path

from edge_agent.power.source import PowerSourceError
from edge_agent.power.sysfs import optional_text

#: It answers in milliseconds; when the firmware is stuck it does not answer at all.
LIMIT_S = 1.0
_FAULT = re.compile(r"error=-?\d+(?:\s+error_msg=\"?(?P<message>[^\"\n]*)\"?)?")
_FORBIDDEN = ("vchi initialization failed", "permission denied", "can't open device", "failed to open vchiq")
_GROUP = "add the user to group video (sudo usermod -aG video USER), then log in again"
#: Bits of `get_throttled`: what is the case now; the same 16 higher has been so since boot.
_BITS = {0: "undervoltage", 1: "frequency-capped", 2: "throttled", 3: "soft-temperature-limit"}


class Firmware:
    """Asks the command, one question at a time, and never waits longer than `limit_s` for an answer."""

    def __init__(self, command: str, limit_s: float = LIMIT_S) -> None:
        self._command, self._limit_s = command, limit_s
        self._running: subprocess.Popen[bytes] | None = None

    def ask(self, question: str) -> str:
        """The answer; raises PowerSourceError when it hangs, fails, or answers with an error."""
        if self._running is not None and self._running.poll() is None:
            # Killed, yet alive: it sits in the kernel. Another one would only join it.
            raise PowerSourceError(f"vcgencmd {question}: an earlier one still hangs in the kernel; restart the board")
        try:
            # A session of its own, so that what it may have started is ended with it.
            running = subprocess.Popen(
                [self._command, question],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except PermissionError as error:
            raise PowerSourceError(f"{self._command} may not be run: {error.strerror}; {_GROUP}") from error
        except OSError as error:
            raise PowerSourceError(f"{self._command}: {error.strerror}; apt install raspi-utils") from error
        self._running = running
        try:
            said, _ = running.communicate(timeout=self._limit_s)
        except subprocess.TimeoutExpired as error:
            self._end(running)
            reason = f"no answer in {self._limit_s:g} s, so it was killed; restart the board if this stays so"
            raise PowerSourceError(f"vcgencmd {question}: {reason}") from error
        text = said.decode(errors="replace").strip()
        _check(question, running.returncode, text)
        return text

    def _end(self, running: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        if running.stdout is not None:
            running.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            running.wait(timeout=0.2)

    def close(self) -> None:
        """End a command that still runs."""
        if self._running is not None and self._running.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._running.pid, signal.SIGKILL)


def _check(question: str, status: int, text: str) -> None:
    fault = _FAULT.search(text)
    if not fault and status == 0:
        return
    said = (fault["message"] if fault else None) or text[:120] or f"exit status {status}"
    if "not registered" in text.lower():
        mend = "only a Raspberry Pi 5 has this meter; wire up an INA2xx monitor or use a metering plug"
    elif any(sign in text.lower() for sign in _FORBIDDEN):
        mend = _GROUP
    else:
        mend = "update the firmware (sudo apt full-upgrade) or look at dmesg"
    raise PowerSourceError(f"vcgencmd {question}: {said}; {mend}")


def throttle_bits(root: Path, firmware: Firmware | None) -> int | None:
    """The bits of `get_throttled`: from the kernel's file where there is one, else from the command; else None."""
    for path in root.glob("sys/devices/platform/soc*/*firmware/get_throttled"):
        with contextlib.suppress(ValueError):
            return int(optional_text(path), 16)
    if firmware is None:
        return None
    try:
        # "throttled=0x50005"
        return int(firmware.ask("get_throttled").rpartition("=")[2], 16)
    except (PowerSourceError, ValueError):
        return None  # A board that does not tell whether it throttles can still be measured.


def throttle_names(bits: int) -> tuple[str, ...]:
    """Names of the lowest four bits that are set."""
    return tuple(name for bit, name in _BITS.items() if bits >> bit & 1)
