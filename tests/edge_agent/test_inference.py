"""Predictions of an installed bundle, in the labels' units."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy
import torch

from aggregator.export import BundleRequest, bundle
from edge_agent.datasets.images import resize
from edge_agent.inference import InferenceError, Predictor, main, verify
from models.networks import build_network, export_state
from models.tasks import TASKS, parse_tasks
from models.wire.tensors import encode_tensors

SIZE = 32
NAMES = parse_tasks("sdna")
VECTORS = parse_tasks("pmz")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("bundle")
    (source / "state").write_bytes(encode_tensors(export_state(build_network("pi", NAMES, SIZE, seed=4))))
    request = BundleRequest("j", "s", "mas", "pi", NAMES, SIZE, str(source / "state"), "00" * 32, (), 1, {}, "0.1.0")
    bundle(request, folder)
    return folder


def _picture(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize(("height", "width"), [(SIZE, SIZE), (100, 60), (20, 31)])
def test_predictions_are_torchs_in_the_labels_units(folder: Path, height: int, width: int) -> None:
    picture = _picture(height, width)
    predicted = Predictor(folder, threads=1).predict(picture)
    rgb = torch.from_numpy(resize(picture, "rgb", SIZE).transpose(2, 0, 1).copy()).float()[None] / 255
    with torch.no_grad():
        outputs = {n: v[0].numpy() for n, v in build_network("pi", NAMES, SIZE, seed=4).eval()(rgb).items()}
    assert list(predicted) == list(NAMES)
    assert predicted["segment_semantic"].dtype == np.uint8
    assert predicted["segment_semantic"].shape == (SIZE, SIZE)
    agreement = predicted["segment_semantic"] == outputs["segment_semantic"].argmax(0)
    assert agreement.mean() > 0.99
    for name in NAMES[1:]:
        expected = TASKS[name].denormalise(outputs[name])
        scale = max(1.0, float(np.abs(expected).max()))
        np.testing.assert_allclose(predicted[name], expected, atol=1e-4 * scale)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("bundle")
    state = export_state(build_network("pi", VECTORS, SIZE, seed=4))
    # Scores so far apart that a careless exponential overflows.
    state["heads.class_scene.predict.bias"][:] = np.linspace(-200, 200, 16)
    state["heads.class_object.predict.bias"][:] = np.linspace(-200, 200, 18)
    (source / "state").write_bytes(encode_tensors(state))
    request = BundleRequest("j", "s", "mas", "pi", VECTORS, SIZE, str(source / "state"), "00" * 32, (), 1, {}, "0.1.0")
    bundle(request, folder)
    return folder


def test_vectors_are_probabilities_and_numbers_in_units(vectors: Path) -> None:
    picture = _picture(SIZE, SIZE)
    predictor = Predictor(vectors, threads=1)
    raw = predictor.run((picture.transpose(2, 0, 1)[None] / 255).astype(np.float32))
    predicted = predictor.predict(picture)
    assert [(task.name, task.kind, task.unit) for task in predictor.manifest.tasks] == [
        ("class_scene", "class", "class id"), ("class_object", "labels", "1 = visible"), ("distance", "numbers", "m")
    ]  # fmt: skip
    shares = np.array(
        [1 / sum(np.exp(raw["class_scene"][0].astype(np.float64) - score)) for score in raw["class_scene"][0]]
    )
    np.testing.assert_allclose(predicted["class_scene"], shares, atol=1e-6)
    logits = raw["class_object"][0].astype(np.float64)
    np.testing.assert_allclose(predicted["class_object"], 1 / (1 + np.exp(-logits)), atol=1e-6)
    np.testing.assert_allclose(predicted["distance"], raw["distance"][0] * 1.5 + 3.0, rtol=1e-6)
    assert all(value.dtype == np.float32 and value.ndim == 1 for value in predicted.values())


def test_vectors_are_verified_as_maps_are(vectors: Path) -> None:
    result = verify(vectors)
    assert result.onnx_max_abs_err <= result.tolerance


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
    ],
    ids=["grey", "rgba", "float", "empty"],
)
def test_what_is_no_picture_is_refused(folder: Path, picture: np.ndarray) -> None:
    with pytest.raises(InferenceError, match="a picture is uint8"):
        Predictor(folder).predict(picture)


def test_verification_measures_the_error_and_the_time(folder: Path) -> None:
    result = verify(folder)
    assert 0 <= result.onnx_max_abs_err < 1e-4
    reference = safetensors.numpy.load_file(folder / "reference.safetensors")
    largest = max(1.0, *(float(np.abs(value).max()) for name, value in reference.items() if name != "input"))
    assert result.tolerance == pytest.approx(1e-3 * largest)
    assert result.inference_ms > 0


def test_the_command_prints_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(folder)]) == 0
    assert set(json.loads(capsys.readouterr().out)) == {"onnx_max_abs_err", "tolerance", "inference_ms"}
    assert main([]) == 2
    assert main(["verify", str(folder / "nowhere")]) == 1
    assert "holds no bundle" in capsys.readouterr().err
