"""The tasks: names and letters, and labels into targets and back, against values worked by hand."""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest

from models.plugins import PluginError, Registry
from models.tasks import TASKS, TaskSpec, UnknownTasksError, letters, parse_tasks


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
        ("edge_occlusion", [0, 56, 1000], [-0.234290, -0.000104, 3.947598]),
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


def test_the_papers_nine_have_their_channels_losses_and_masks() -> None:
    nine = parse_tasks("sdnkterca")
    assert letters(nine) == "sdnkterca"
    assert [TASKS[name].channels for name in nine] == [18, 1, 3, 1, 1, 1, 1, 2, 3]
    assert {name for name in nine if TASKS[name].masked} == set(parse_tasks("dnerc"))
    assert {name for name in nine if TASKS[name].rotate} == set(parse_tasks("dne"))
    assert {name for name in nine if TASKS[name].loss == "l1"} == set(parse_tasks("dnkterca"))
    assert {name for name in nine if TASKS[name].flip_negates} == {"normal"}
    assert not any(TASKS[name].is_vector for name in nine)
    assert [spec.faults() for spec in TASKS.values()] == [[]] * len(TASKS)


def test_shading_is_the_mean_of_the_channels_and_its_published_figures_are_of_values_to_one() -> None:
    raw = np.array([0, 127, 254], np.uint8).reshape(3, 1, 1)
    found = TASKS["reshading"].normalise(raw)
    assert found.shape == (1, 1, 1)
    assert found.item() == pytest.approx((127 / 255 - 0.4962) / 0.2846, abs=1e-6)
    assert abs(found.item()) < 0.01, "the middle of eight bits is the middle of the target"
    assert TASKS["reshading"].normalise(raw[None]).shape == (1, 1, 1, 1)
    assert TASKS["reshading"].denormalise(found).item() == pytest.approx(127, abs=1e-3)


def test_each_curvature_has_its_own_normalisation() -> None:
    raw = np.array([132, 127], np.uint8).reshape(2, 1, 1)
    found = TASKS["principal_curvature"].normalise(raw)[:, 0, 0]
    assert found == pytest.approx([(132 / 255 - 0.5175) / 0.1373, (127 / 255 - 0.4987) / 0.0359], abs=1e-5)
    assert np.abs(found).max() < 0.02, "nearly flat is nearly zero"


def test_tasks_of_the_whole_picture() -> None:
    kinds = {name: (spec.letter, spec.loss, spec.is_classes) for name, spec in TASKS.items() if spec.is_vector}
    assert kinds == {
        "class_scene": ("p", "cross_entropy", False),
        "class_object": ("m", "bce", False),
        "distance": ("z", "l1", False),
    }
    found = TASKS["distance"].normalise(np.array([[3.0], [6.0]]))
    assert found.tolist() == [[0.0], [2.0]]
    assert TASKS["distance"].denormalise(found).tolist() == [[3.0], [6.0]]


SOUND = TaskSpec("mood", "q", 2, "l1", encoding="rgb8")


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"loss": "hinge"}, "it has no usable loss: 'hinge' for a map; known are cross_entropy, l1"),
        ({"loss": ""}, "it has no usable loss"),
        ({"loss": "bce"}, "it has no usable loss: 'bce' for a map"),
        ({"kind": "scalar"}, "kind 'scalar'; known are map, vector"),
        ({"name": "My mood"}, "a name is lower-case letters"),
        ({"letter": "qq"}, "is not a single letter"),
        ({"letter": "\u00df"}, "is not a single letter"),
        ({"channels": 0}, "0 channels"),
        ({"channels": 4}, "files of encoding rgb8 cannot hold its labels"),
        ({"encoding": "grey16"}, "files of encoding grey16 cannot hold its labels"),
        ({"encoding": "jpeg"}, "encoding 'jpeg'; known are"),
        ({"mean": (1.0, 2.0, 3.0)}, "3 values of mean for 2 channels"),
        ({"std": (1.0, 0.0)}, "scale and std must not be 0"),
        ({"flip_negates": (2,)}, "names channels that it does not have"),
        ({"averaged": True}, "averaged leaves one channel"),
        ({"kind": "vector", "masked": True}, "masked is for maps of values"),
        ({"kind": "vector", "rotate": True}, "rotate is for maps of values"),
        ({"loss": "cross_entropy", "encoding": "grey8", "flip_negates": (0,)}, "flip_negates is for maps of values"),
    ],
)
def test_what_is_no_task_is_told_why(changes: dict[str, Any], fault: str) -> None:
    assert SOUND.faults() == []
    found = replace(SOUND, **changes).faults()
    assert any(fault in each for each in found), found
    assert all(each.startswith("task '") for each in found)


class Point(NamedTuple):
    """An entry point of a package that is not installed."""

    name: str
    value: str
    loaded: object
    dist: object = None
    group: str = TASKS.group

    def load(self) -> object:
        return self.loaded


def with_plugins(monkeypatch: pytest.MonkeyPatch, *loaded: object) -> Registry[TaskSpec]:
    points = [Point(f"point{number}", "package:thing", each) for number, each in enumerate(loaded)]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: points if group == TASKS.group else [])
    return Registry(TASKS.group, TASKS._builtin, TASKS._expand, TASKS._marks)


def test_packages_add_tasks_one_or_several_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    more = (replace(SOUND, name="warmth", letter="w"), replace(SOUND, name="smell", letter="S", kind="vector"))
    found = with_plugins(monkeypatch, SOUND, more)
    assert list(found)[-3:] == ["mood", "warmth", "smell"]
    assert found["smell"].is_vector


def test_every_broken_task_of_every_package_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found = with_plugins(
        monkeypatch,
        replace(SOUND, letter="s"),
        replace(SOUND, name="normal"),
        replace(SOUND, loss="guess", channels=0),
        "text",
        (),
        (SOUND, replace(SOUND, letter="w")),
    )
    with pytest.raises(PluginError) as caught:
        len(found)
    text = "\n".join(caught.value.faults)
    assert len(caught.value.faults) == 6
    assert "letter s is taken by mas-edge itself" in text
    assert "name normal is taken by mas-edge itself" in text
    assert "task 'mood': it has no usable loss: 'guess'" in text
    assert "0 channels" in text
    assert "must be a TaskSpec or a tuple of them, and is 'text'" in text
    assert "more than one task of the name mood" in text


def test_tasks_need_neither_numpy_nor_torch_before_a_label_is_normalised() -> None:
    code = "import sys, models.tasks as t; list(t.TASKS); print([n for n in ('numpy', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
