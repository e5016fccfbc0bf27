"""Anybody's photographs as the demo's data: one client for each agent."""

from __future__ import annotations

import shutil
from pathlib import Path

from rich.console import Console

from tools.photos import PhotoPlan, write_photos


def dataset_of(photos: Path, out: Path, size: int, agents: int, seed: int, console: Console) -> Path:
    """Cut the photographs under `photos` into a dataset in `out` (replaced); says what could not be used.

    Raises PhotosError when there are too few.
    """
    if out.exists():
        shutil.rmtree(out)
    with console.status(f"cutting the photographs of {photos}"):
        summary = write_photos(PhotoPlan(size=size, clients=agents, seed=seed), photos, out)
    for reason in summary.skipped:
        console.print(f"skipped {reason}", highlight=False)
    console.print(f"{summary.photos} photographs, {summary.images} pictures for {agents} agents and held-out clients")
    return out
