from __future__ import annotations

import numpy as np
import pytest

from models.state import StateError, check_like, merge_states, shapes, split_state, tasks_of


def state(*tasks: str, fill: float = 1.0) -> dict[str, np.ndarray]:
    arrays = {
        "encoder.stem.weight": np.full((2, 3), fill, np.float32),
        "encoder.bn.running_var": np.ones(2, np.float32),
    }
    for task in tasks:
        arrays[f"heads.{task}.out.weight"] = np.full((1, 2), fill, np.float32)
        arrays[f"heads.{task}.out.bias"] = np.full(1, fill, np.float32)
    return arrays


def test_split_keeps_encoder_and_named_heads_in_order() -> None:
    whole = state("normal", "edge_texture", "keypoints2d")
    part = split_state(whole, ["keypoints2d", "normal"])
    assert list(part) == [name for name in whole if "edge_texture" not in name]
    assert all(part[name] is whole[name] for name in part)
    assert tasks_of(part) == ("normal", "keypoints2d")


def test_a_task_whose_name_begins_like_another() -> None:
    part = split_state(state("edge", "edge_texture"), ["edge"])
    assert tasks_of(part) == ("edge",)


def test_split_names_every_missing_head_and_encoder() -> None:
    heads_only = {name: array for name, array in state("normal").items() if name.startswith("heads.")}
    with pytest.raises(StateError) as caught:
        split_state(heads_only, ["rgb", "normal", "saliency"])
    assert len(caught.value.faults) == 3
    assert "rgb" in caught.value.faults[0]
    assert "saliency" in caught.value.faults[1]
    assert "encoder" in caught.value.faults[2]
    with pytest.raises(StateError, match="no task is given"):
        split_state(state("normal"), [])


def test_merge_undoes_split() -> None:
    whole = state("normal", "edge_texture")
    parts = [split_state(whole, [task]) for task in tasks_of(whole)]
    merged = merge_states(whole, *parts)
    assert merged == whole


def test_merge_takes_the_encoder_of_the_first_only() -> None:
    merged = merge_states(state("rgb", fill=1), state("normal", fill=2), state("saliency", fill=3))
    assert tasks_of(merged) == ("normal", "saliency")
    assert merged["encoder.stem.weight"][0, 0] == 1
    assert merged["heads.normal.out.bias"][0] == 2
    assert merged["heads.saliency.out.bias"][0] == 3


def test_merge_refuses_two_heads_for_a_task_and_no_encoder() -> None:
    with pytest.raises(StateError, match="task normal has a head in states 0 and 1"):
        merge_states(state(), state("normal"), state("normal", "rgb"))
    with pytest.raises(StateError, match="no encoder"):
        merge_states({}, state("normal"))


def test_check_like_passes_any_order_and_names_every_fault() -> None:
    reference = state("normal", "rgb")
    assert check_like(dict(reversed(reference.items())), reference) == []
    bad = dict(reference)
    del bad["heads.rgb.out.bias"]
    bad["heads.rgb.extra"] = np.zeros(1, np.float32)
    bad["heads.rgb.out.weight"] = np.zeros((2, 1), np.float32)
    bad["heads.normal.out.weight"] = np.zeros((1, 2), np.float64)  # type: ignore[assignment]
    bad["heads.normal.out.bias"] = np.float32([np.nan])
    bad["encoder.stem.weight"] = np.float32([[1, np.inf, 3], [4, -np.inf, 6]])
    faults = check_like(bad, reference)
    assert faults[0] == "heads.rgb.out.bias is missing"
    assert sorted(faults[1:]) == [
        "encoder.stem.weight has 2 of 6 values that are NaN or infinite",
        "heads.normal.out.bias has 1 of 1 values that are NaN or infinite",
        "heads.normal.out.weight is float64, expected float32",
        "heads.rgb.extra is unknown here",
        "heads.rgb.out.weight has shape (2, 1), expected (1, 2)",
    ]


def test_shapes() -> None:
    assert shapes(state("rgb")) == {
        "encoder.stem.weight": (2, 3),
        "encoder.bn.running_var": (2,),
        "heads.rgb.out.weight": (1, 2),
        "heads.rgb.out.bias": (1,),
    }
