"""How much memory there is for pictures: of the machine, of the container this runs in, or what a GPU has free."""

from __future__ import annotations

import os
from pathlib import Path

import torch

#: Share of the memory that all workers together may fill with decoded pictures, unless told otherwise.
PICTURES_SHARE = 0.25
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def pictures_bytes(device: str, shares: int = 1) -> int:
    """What one of `shares` workers on the same memory may keep of pictures."""
    free_bytes = _gpu_bytes() if device == "cuda" else host_bytes()
    return int(PICTURES_SHARE * free_bytes / shares)


def host_bytes(cgroups: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> int:
    """Memory of this machine, or the lowest limit of the control groups of this process (versions 1 and 2)."""
    machine_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine_bytes, *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> list[int]:
    """Limits of every group that this process is in, those above them included; none where there are no groups."""
    try:
        lines = own.read_text().splitlines()
    except OSError:  # no Linux
        return []
    limits = []
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers == "":
            top, name = cgroups, "memory.max"
        elif "memory" in controllers.split(","):
            top, name = cgroups / "memory", "memory.limit_in_bytes"
        else:
            continue
        # In a container the path may be the host's, of which only the top is seen here.
        inner = top / group.lstrip("/")
        for place in (inner, *inner.parents):
            if place.is_relative_to(top) and (limit := _number(place / name)):
                limits.append(limit)
    return limits


def _number(path: Path) -> int | None:
    """The number in a file; None where there is no file, or "max"."""
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _gpu_bytes() -> int:
    free_bytes, _ = torch.cuda.mem_get_info()
    return free_bytes
