"""The tasks: names and letters, and labels into targets and back, against values worked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from models.tasks import TASKS, UnknownTasksError, letters, parse_tasks


def test_letters_and_names_in_any_mixture_keep_their_order() -> None:
    assert parse_tasks("sdn") == ("segment_semantic", "depth_zbuffer", "normal")
    assert parse_tasks("normal, s") == ("normal", "segment_semantic")
    assert parse_tasks(["kt", "normal,d"]) == ("keypoints2d", "edge_texture", "normal", "depth_zbuffer")
    assert letters(parse_tasks("sdnkt")) == "sdnkt"


def test_every_letter_is_one_task_and_no_task_is_a_word_of_letters() -> None:
    assert parse_tasks("".join(task.letter for task in TASKS.values())) == tuple(TASKS)
    for name in TASKS:
        assert parse_tasks(name) == (name,)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(UnknownTasksError) as caught:
        parse_tasks(["sx", "depth", "nn", "normal"])
    faults = caught.value.faults
    assert len(faults) == 3
    assert faults[0].startswith("unknown task 'sx'; known are s=segment_semantic, d=depth_zbuffer")
    assert faults[1].startswith("unknown task 'depth'")
    assert faults[2] == "task normal is given 3 times"


@pytest.mark.parametrize("nothing", ["", [], [""], " , "])
def test_no_task_at_all_is_a_fault(nothing: str | list[str]) -> None:
    with pytest.raises(UnknownTasksError):
        parse_tasks(nothing)


@pytest.mark.parametrize(
    "task, raw, target",
    [
        ("depth_zbuffer", [1500, 2500, 500], [0.0, 1.0, -1.0]),
        ("keypoints2d", [50, 150, 0], [0.0, 1.0, -0.5]),
        ("edge_texture", [718, 1788, 183], [0.0, 1.0, -0.5]),
        ("rgb", [0, 255, 51], [0.0, 1.0, 0.2]),
    ],
)
def test_targets_are_those_of_the_paper(task: str, raw: list[int], target: list[float]) -> None:
    spec = TASKS[task]
    stored = np.broadcast_to(np.array(raw, np.uint16), (spec.channels, 1, 3))
    found = spec.normalise(stored)
    assert found.dtype == np.float32
    assert np.allclose(found, np.broadcast_to(target, found.shape), atol=1e-6)
    assert np.allclose(spec.denormalise(found), stored, atol=1e-2)


def test_normals_are_centred_and_twice_as_wide() -> None:
    raw = np.array([[[0]], [[255]], [[127]]], np.uint8)
    found = TASKS["normal"].normalise(raw)
    assert found[:, 0, 0] == pytest.approx([-1.0, 1.0, 2 * (127 / 255 - 0.5)], abs=1e-6)


def test_batches_keep_their_shape_and_channels_their_own_normalisation() -> None:
    spec = TASKS["normal"]
    raw = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5), np.uint8)
    assert spec.normalise(raw).shape == (2, 3, 4, 5)
    assert np.array_equal(spec.normalise(raw)[1], spec.normalise(raw[1]))


def test_what_the_losses_and_the_flip_need_to_know() -> None:
    assert TASKS["segment_semantic"].is_classes
    assert TASKS["segment_semantic"].channels == 18
    assert {name for name, spec in TASKS.items() if spec.rotate} == {"depth_zbuffer", "normal", "edge_occlusion"}
    assert TASKS["normal"].flip_negates == (0,)
    assert all(spec.domain == name for name, spec in TASKS.items())
