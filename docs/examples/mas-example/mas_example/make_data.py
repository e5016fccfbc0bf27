"""Three clients' worth of plain pictures with their labels: `python -m mas_example.make_data FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

PICTURES = 40
SIZE = 32


def make(root: Path) -> None:
    """Write `north.npz`, `south.npz` and `west.npz` below `root`."""
    root.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(("north", "south", "west")):
        random = np.random.default_rng(seed)
        warm = random.integers(0, 2, PICTURES)
        colours = random.uniform(0.1, 0.9, (PICTURES, 3))
        colours[:, 0] += np.where(warm, 0.4, -0.4)
        grain = random.normal(0, 0.05, (PICTURES, SIZE, SIZE, 3))
        rgb = np.rint(255 * np.clip(colours[:, None, None, :] + grain, 0, 1)).astype(np.uint8)
        np.savez(root / f"{name}.npz", rgb=rgb, brightness=rgb.mean((1, 2, 3)) / 255, warmth=warm)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m mas_example.make_data FOLDER")
    make(Path(sys.argv[1]))
