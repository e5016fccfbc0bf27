"""`mas agent infer`: one picture through a device's bundles, the outputs as files."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from edge_agent.inference import Predictor
from models.tasks import TASKS
from tools.report.colours import limits, paint


class PictureError(Exception):
    """A file that is no picture."""


def infer_picture(image: Path, bundles: Mapping[Path, Collection[str] | None], out: Path) -> list[dict[str, str]]:
    """Predict the tasks of a picture; writes `<task>.npy` (label units) and `<task>.png` (to look at) into `out`.

    `bundles` are folders and the letters of the tasks wanted of each (None: all). Raises PictureError, InferenceError.
    """
    try:
        with Image.open(image) as opened:
            rgb = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except OSError as error:
        raise PictureError(f"{image} cannot be read as a picture: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for folder, wanted in bundles.items():
        for task, values in Predictor(folder).predict(rgb).items():
            if wanted is not None and TASKS[task].letter not in wanted:
                continue
            np.save(out / f"{task}.npy", values)
            shown = values if values.ndim == 3 else values[None]
            Image.fromarray(paint(task, shown, limits(task, [shown]), shown)).save(out / f"{task}.png")
            written.append({"task": task, "file": str(out / f"{task}.npy"), "picture": str(out / f"{task}.png")})
    return written
