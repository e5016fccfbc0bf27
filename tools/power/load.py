"""Work for the processors while a meter is calibrated: a line needs more than one point."""

from __future__ import annotations

import os
import subprocess
import sys
from types import TracebackType

#: Shares of the cores that are kept busy, one after the other over the whole time.
STEPS = (0.0, 1.0, 0.5, 0.0, 0.5, 1.0)
_SPIN = """\
import os, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(0)), daemon=True).start()
while True:
    pass
"""


class Load:
    """Keeps a changing number of cores busy. As a context manager: none is left busy at its end.

    `cores` 0 does nothing at all: whoever calibrates loads the device as they like.
    """

    def __init__(self, cores: int | None = None) -> None:
        self._cores = (os.cpu_count() or 1) if cores is None else cores
        self._busy: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Load:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._keep(0)

    def at(self, share: float) -> str:
        """Puts the load in place for this share (0 to 1) of the time; what it is, for people."""
        if self._cores == 0:
            return "load as you like"
        step = STEPS[min(len(STEPS) - 1, int(share * len(STEPS)))]
        self._keep(round(step * self._cores))
        return f"{len(self._busy)} of {self._cores} cores busy"

    def _keep(self, number: int) -> None:
        while len(self._busy) < number:
            # Each ends by itself when its stdin closes, so that none outlives this process.
            self._busy.append(subprocess.Popen([sys.executable, "-c", _SPIN], stdin=subprocess.PIPE))
        while len(self._busy) > number:
            process = self._busy.pop()
            process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
