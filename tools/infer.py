"""`mas agent infer`: one picture through a device's bundles, the outputs as files and, where they are few, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from edge_agent.inference import Predictor
from models.bundle import TaskOutput
from tools.report.colours import limits, paint

_CLASSES_TOLD = 3
_VISIBLE_FROM = 0.5


class PictureError(Exception):
    """A file that is no picture."""


def infer_picture(image: Path, bundles: Mapping[Path, Collection[str] | None], out: Path) -> list[dict[str, Any]]:
    """Predict the tasks of a picture; writes `<task>.npy` (label units, or probabilities) into `out`.

    A row for each task: `task`, `file`, and for a map the `picture` of it, also written there; for what is said of the
    whole picture `says` in words and `values` by class or number. `bundles` are folders and the letters of the tasks
    wanted of each (None: all). Raises PictureError, InferenceError.
    """
    try:
        with Image.open(image) as opened:
            rgb = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    except OSError as error:
        raise PictureError(f"{image} cannot be read as a picture: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for folder, wanted in bundles.items():
        predictor = Predictor(folder)
        predicted = predictor.predict(rgb)
        for task in predictor.manifest.tasks:
            if wanted is None or task.letter in wanted:
                written.append(_write(task, predicted[task.name], out))
    return written


def describe(task: TaskOutput, values: npt.NDArray[Any], names: Mapping[int, str] | None = None) -> str:
    """A vector `[channels]` in words, such as "kitchen 87 %"; `names` of classes stand in for those of the task."""
    if task.kind == "numbers":
        return ", ".join(f"{value:.4g}" for value in values) + f" {task.unit}"
    if task.kind == "class":
        told = [int(each) for each in np.argsort(-values, kind="stable")[:_CLASSES_TOLD]]
    else:
        told = [int(each) for each in np.flatnonzero(values >= _VISIBLE_FROM)]
    named = dict(names) if names else dict(enumerate(task.names))
    return ", ".join(f"{named.get(each, f'class {each}')} {values[each]:.0%}" for each in told) or "none"


def _write(task: TaskOutput, values: npt.NDArray[Any], out: Path) -> dict[str, Any]:
    np.save(out / f"{task.name}.npy", values)
    row: dict[str, Any] = {"task": task.name, "file": str(out / f"{task.name}.npy")}
    if task.kind in ("classes", "values"):
        shown = values if values.ndim == 3 else values[None]
        Image.fromarray(paint(task.name, shown, limits(task.name, [shown]), shown)).save(out / f"{task.name}.png")
        return {**row, "picture": str(out / f"{task.name}.png")}
    return {**row, "says": describe(task, values), "values": _by_name(task, values)}


def _by_name(task: TaskOutput, values: npt.NDArray[np.float32]) -> dict[str, float]:
    names = task.names or tuple(str(place) for place in range(len(values)))
    return {name: float(value) for name, value in zip(names, values, strict=True)}
