"""What a device's bundles say of held-out pictures: maps as results, the rest in the captions beside the truth."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from aggregator.export import BundleRequest, bundle
from edge_agent.bundle import install
from models.bundle import FILES, MANIFEST
from models.networks import build_network, export_state
from models.tasks import parse_tasks
from models.wire.tensors import encode_tensors
from tools.demo.predictions import predict

SIZE = 32
TASKS = parse_tasks("apmz")
LABELS = {"class_scene": 5, "class_object": [0.0] * 3 + [1.0] + [0.0] * 14, "distance": 4.25}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for point in range(3):
        for domain in ("rgb", *LABELS):
            folder = tmp_path / "data" / domain / "house"
            folder.mkdir(parents=True, exist_ok=True)
            file = folder / f"point_{point}_view_0_domain_{domain}"
            if domain in LABELS:
                file.with_suffix(".json").write_text(json.dumps(LABELS[domain]))
            else:
                pixels = random.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(file.with_suffix(".png"))
    return tmp_path / "data"


@pytest.fixture
def device(tmp_path: Path) -> Path:
    """A device with one bundle that is sure of class 7 and of no object."""
    state = export_state(build_network("pi", TASKS, SIZE, seed=1))
    state["heads.class_scene.predict.bias"][7] = 50
    state["heads.class_object.predict.bias"][:] = -50
    state["heads.distance.predict.weight"][:] = 0
    state["heads.distance.predict.bias"][:] = 0.5
    made = tmp_path / "made"
    made.mkdir()
    (made / "state").write_bytes(encode_tensors(state))
    bundle(BundleRequest("j", "s", "mas", "pi", TASKS, SIZE, str(made / "state"), "00" * 32, (), 1, {}, "0.1.0"), made)
    install({name: made / name for name in FILES}, made / MANIFEST, tmp_path / "device")
    return tmp_path / "device"


@pytest.mark.slow
def test_maps_are_results_and_vectors_are_told_in_captions(data: Path, device: Path) -> None:
    (shown,) = predict(device, data, ("house",), TASKS)
    assert shown.task == "rgb"
    assert shown.inputs.shape == shown.truth.shape == shown.prediction.shape == (3, 3, SIZE, SIZE)
    for point, caption in enumerate(shown.captions):
        place, scene, seen, distance = caption.split("; ")
        assert place == f"house, point {point}"
        assert scene.startswith("class_scene: class 7 100%, ")
        assert scene.endswith("(truth: class 5)")
        assert seen == "class_object: none (truth: class 3 100%)"
        # 0.5 standard deviations of 1.5 m above the mean of 3 m
        assert distance == "distance: 3.75 m (truth: 4.25 m)"
