"""CPU seconds of this process and of the trainers it started, alive or gone."""

from __future__ import annotations

import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def process_cpu_s(pid: int) -> float:
    """User and system seconds of a living process (resolution: one clock tick); 0.0 once it is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0.0
    # The command's name may hold spaces and brackets; the fields begin after its last bracket.
    fields = text.rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S


class CpuClock:
    """Monotonic count of CPU seconds: this process, one watched child, and the children already waited for."""

    def __init__(self) -> None:
        self._pid: int | None = None
        self._highest_s = 0.0

    def watch(self, pid: int | None) -> None:
        """Count the living child `pid` from now on (None: none)."""
        self._pid = pid

    def __call__(self) -> float:
        """CPU seconds so far; never falls, also not between a child's death and its being waited for."""
        used = os.times()
        total_s = used.user + used.system + used.children_user + used.children_system
        if self._pid is not None:
            total_s += process_cpu_s(self._pid)
        self._highest_s = max(self._highest_s, total_s)
        return self._highest_s
