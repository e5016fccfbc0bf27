"""`mas agent infer`: one picture through a device's bundles, the outputs as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edge_agent.inference import Predictor
from tools.report.colours import limits, paint


class PictureError(Exception):
    """A file that is no picture."""


def infer_picture(image: Path, bundles: Sequence[Path], out: Path) -> list[dict[str, str]]:
    """Predict every task of every bundle; writes `<task>.npy` (label units) and `<task>.png` (to look at) into `out`."""
    try:
        with Image.open(image) as opened:
            rgb = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except OSError as error:
        raise PictureError(f"{image} cannot be read as a picture: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for folder in bundles:
        for task, values in Predictor(folder).predict(rgb).items():
            np.save(out / f"{task}.npy", values)
            shown = values if values.ndim == 3 else values[None]
            Image.fromarray(paint(task, shown, limits(task, [shown]), shown)).save(out / f"{task}.png")
            written.append({"task": task, "file": str(out / f"{task}.npy"), "picture": str(out / f"{task}.png")})
    return written
