"""Predictions as pictures: shared limits, known colours, one figure an input, arrays that do not fit."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
import report_runs as runs
from PIL import Image

from tools.report.colours import class_colour, limits, paint
from tools.report.pictures import Prediction, PredictionError, data_uri, examples, keys

Array = np.ndarray[Any, Any]


def pixels(uri: str) -> Array:
    kind, _, body = uri.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(body))))


def hexes(image: Array) -> list[str]:
    return ["#" + "".join(f"{level:02x}" for level in pixel) for pixel in image.reshape(-1, 3)]


def test_tasks_of_the_same_picture_share_a_figure() -> None:
    made = examples(runs.predictions(3))
    assert [example.caption for example in made] == ["oak, view 0", "oak, view 1", "oak, view 2"]
    assert all([pair.task for pair in example.pairs] == list(runs.TASKS) for example in made)
    assert np.array_equal(pixels(made[1].picture), np.moveaxis(runs.room(1)["rgb"], 0, -1))


def test_truth_sets_the_limits_for_both() -> None:
    truth = np.linspace(0, 1000, 64 * 64).reshape(1, 64, 64)
    shared = limits("edge_texture", [truth])
    assert shared is not None
    assert shared.low == 0
    assert shared.high == pytest.approx(990, rel=1e-3)
    right, wild = paint("edge_texture", truth, shared, truth), paint("edge_texture", truth * 100, shared, truth)
    assert hexes(right)[0] == "#0c1020"  # the ramp's low end
    assert hexes(right)[-1] == hexes(wild)[-1] == "#fff7b8"  # beyond the high end stays at it
    assert not np.array_equal(right, wild)


def test_depth_ignores_pixels_without_a_surface() -> None:
    truth = np.array([[[512.0, 1024.0, 2048.0, 65535.0]]])
    shared = limits("depth_zbuffer", [truth])
    assert shared is not None
    assert shared.high < 2049
    painted = paint("depth_zbuffer", truth, shared, truth)
    assert hexes(painted)[-1] == "#808080"
    assert hexes(painted)[0] == "#fff3c4"
    key = keys([Prediction("depth_zbuffer", np.zeros((1, 3, 1, 4)), truth[None], truth[None])])[0]
    assert (key.low, key.high) == ("1.0 m", "4.0 m")


def test_classes_have_their_colour_and_fade_where_ignored() -> None:
    ids = np.array([[[1, 7, 7]]])
    painted = hexes(paint("segment_semantic", ids, None, np.array([[[1, 7, 0]]])))
    assert painted[:2] == [class_colour(1), class_colour(7)]
    assert painted[2] != class_colour(7)


def test_class_names_in_the_key() -> None:
    ids = np.array([[[[0, 1], [6, 6]]]])
    key = keys([Prediction("segment_semantic", np.zeros((1, 3, 2, 2)), ids, ids, {1: "wall"})])[0]
    assert key.swatches == ((class_colour(1), "wall"), (class_colour(6), "class 6"))


def test_ids_beyond_the_palette_never_look_ignored() -> None:
    assert class_colour(18) == class_colour(1)
    assert class_colour(0) not in {class_colour(index) for index in range(1, 60)}


def test_opposite_directions_have_opposite_hues() -> None:
    field = np.array([[[255.0, 0.0, 127.5]], [[127.5, 127.5, 127.5]]])
    right, left, flat = paint("orientation", field, None, field)[0].astype(int)
    assert right.argmax() == 0
    assert left.argmin() == 0
    assert flat.max() < 40


def test_normals_and_colours_are_shown_as_they_are() -> None:
    values = np.array([[[10.4]], [[300.0]], [[-5.0]]])
    assert paint("normal", values, None, values)[0, 0].tolist() == [10, 255, 0]
    assert paint("rgb", values * np.nan, None, values)[0, 0].tolist() == [127, 127, 127]


def test_large_pictures_are_made_small() -> None:
    assert pixels(data_uri(np.zeros((512, 256, 3), np.uint8))).shape == (160, 80, 3)


def test_class_maps_may_lack_the_channel() -> None:
    ids = np.ones((2, 4, 4), int)
    inputs = np.arange(2 * 3 * 16).reshape(2, 3, 4, 4)
    assert len(examples([Prediction("segment_semantic", inputs, ids, ids)])) == 2


def test_every_misfit_is_named_at_once() -> None:
    with pytest.raises(PredictionError) as caught:
        examples([Prediction("normal", np.zeros((1, 4, 8, 8)), np.zeros((1, 1, 8, 8)), np.zeros((2, 3, 8, 8)))])
    assert [fault.split(" ")[1] for fault in caught.value.faults] == ["inputs", "truth", "prediction"]
    with pytest.raises(PredictionError, match="but the prediction"):
        examples([Prediction("normal", np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 8, 8)), np.zeros((1, 3, 4, 4)))])
