"""Predictions beside the truth: one figure an example, with every task that was shown for it."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from models.tasks import DEPTH_DOMAIN, TASKS
from tools.report import words
from tools.report.colours import Array, Image8, Limits, class_colour, limits, paint, ramp_css, rgb

_LARGEST_PX = 160
_DEPTH_UNITS_PER_M = 512


class PredictionError(ValueError):
    """Arrays of a prediction that do not fit together; `faults` names every one."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class Prediction:
    """One task's outputs on a few held-out pictures, everything in the units of the label files.

    `inputs` `[example, 3, height, width]` RGB 0..255; `truth` and `prediction` `[example, channels, height, width]`,
    class maps as ids (channels may then be left out). `classes` names class ids, `captions` the examples.
    Tasks given with the same inputs share a figure.
    """

    task: str
    inputs: Array
    truth: Array
    prediction: Array
    classes: Mapping[int, str] = field(default_factory=dict)
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """The two pictures of one task as data URIs."""

    task: str
    truth: str
    prediction: str


@dataclass(frozen=True, slots=True)
class Example:
    """One input picture with its tasks."""

    caption: str
    picture: str
    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Key:
    """How to read one task's colours: a ramp with its ends, or swatches, or a sentence."""

    task: str
    ramp: str = ""
    low: str = ""
    high: str = ""
    swatches: tuple[tuple[str, str], ...] = ()
    note: str = ""


def examples(predictions: Sequence[Prediction]) -> list[Example]:
    """Figures in order of first appearance. Raises PredictionError for arrays that do not fit."""
    checked = [_checked(prediction) for prediction in predictions]
    found: dict[bytes, tuple[str, Image8, list[Pair]]] = {}
    for prediction in checked:
        shared = limits(prediction.task, list(prediction.truth))
        for index, source in enumerate(prediction.inputs):
            picture = rgb(source)
            caption = prediction.captions[index] if index < len(prediction.captions) else f"example {index + 1}"
            entry = found.setdefault(picture.tobytes(), (caption, picture, []))
            entry[2].append(_pair(prediction, index, shared))
    return [Example(caption, data_uri(image), tuple(pairs)) for caption, image, pairs in found.values()]


def keys(predictions: Sequence[Prediction]) -> list[Key]:
    """One colour key a task, over all its examples."""
    return [_key(prediction) for prediction in map(_checked, predictions)]


def data_uri(image: Image8) -> str:
    """RGB `[H, W, 3]` as a PNG in base64, at most 160 pixels on the longer side (the page enlarges small ones)."""
    picture = Image.fromarray(image)
    picture.thumbnail((_LARGEST_PX, _LARGEST_PX), Image.Resampling.BOX)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _pair(prediction: Prediction, index: int, shared: Limits | None) -> Pair:
    truth = prediction.truth[index]
    return Pair(
        prediction.task,
        data_uri(paint(prediction.task, truth, shared, truth)),
        data_uri(paint(prediction.task, prediction.prediction[index], shared, truth)),
    )


def _checked(given: Prediction) -> Prediction:
    inputs, truth, output = (np.asarray(a) for a in (given.inputs, given.truth, given.prediction))
    truth, output = (a[:, None] if a.ndim == 3 else a for a in (truth, output))
    faults = []
    if inputs.ndim != 4 or inputs.shape[1] != 3:
        faults.append(f"{given.task}: inputs are {inputs.shape}, expected [example, 3, height, width]")
    spec = TASKS.get(given.task)
    channels = None if spec is None else 1 if spec.is_classes else spec.channels
    for name, array in (("truth", truth), ("prediction", output)):
        if array.ndim != 4 or len(array) != len(inputs) or channels not in (None, array.shape[1]):
            wanted = f"[{len(inputs)}, {channels or 'channels'}, height, width]"
            faults.append(f"{given.task}: {name} is {array.shape}, expected {wanted}")
    if not faults and truth.shape != output.shape:
        faults.append(f"{given.task}: truth is {truth.shape} but the prediction {output.shape}")
    if faults:
        raise PredictionError(faults)
    return Prediction(given.task, inputs, truth, output, given.classes, given.captions)


def _key(prediction: Prediction) -> Key:
    task, spec = prediction.task, TASKS.get(prediction.task)
    shared = limits(task, list(prediction.truth))
    if shared is not None:
        if task == DEPTH_DOMAIN:
            low, high = (f"{value / _DEPTH_UNITS_PER_M:.1f} m" for value in (shared.low, shared.high))
            return Key(task, ramp_css(task), low, high, note="grey: no surface")
        return Key(task, ramp_css(task), words.digits(shared.low), words.digits(shared.high), note="as stored")
    if spec is not None and spec.is_classes:
        ids = np.unique(np.concatenate([prediction.truth.ravel(), prediction.prediction.ravel()]))
        shown = [int(value) for value in ids if value > 0]
        names = tuple((class_colour(value), prediction.classes.get(value, f"class {value}")) for value in shown)
        return Key(task, swatches=names, note="faded: ignored by the label")
    if task == "orientation":
        return Key(task, note="hue: direction of the structure; brightness: how clear it is")
    if task == "normal":
        return Key(task, note="red, green and blue are the three parts of the surface’s direction; mid grey is zero")
    return Key(task, note="as stored")
