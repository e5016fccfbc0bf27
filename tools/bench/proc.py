"""Memory and CPU time of a living process, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path

from tools.bench.base import BenchError

_NS_PER_S = 1e9


def memory_bytes(pid: int, key: str, file: str = "status") -> float:
    """One entry of /proc/PID/status (VmRSS, VmHWM) or smaps_rollup (Pss). Raises BenchError when it is not there."""
    path = Path(f"/proc/{pid}/{file}")
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise BenchError(
            f"{path} cannot be read ({error.strerror}): the process ended, or this is not Linux"
        ) from error
    for line in lines:
        name, _, value = line.partition(":")
        if name == key:
            return int(value.split()[0]) * 1024.0
    raise BenchError(f"{path} has no {key}; this benchmark needs Linux")


def cpu_s(pid: int) -> float:
    """CPU seconds of all living threads, to the nanosecond (the clock ticks of /proc/PID/stat are too coarse).

    Raises BenchError.
    """
    try:
        spent = [(task / "schedstat").read_text().split()[0] for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError as error:
        raise BenchError(
            f"/proc/{pid}/task/*/schedstat cannot be read ({error.strerror}): the process ended, or the kernel has no "
            "scheduler statistics"
        ) from error
    return sum(map(int, spent)) / _NS_PER_S
