"""Initial weights and bundles, as the child process makes them."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
import torch
from torch import nn

from aggregator.attribution import ENCODER, PartWork
from aggregator.export import PARTS, BundleRequest, ExportError, InitRequest, bundle, initialise, main, write_onnx
from models.bundle import FILES, MANIFEST, Manifest, ManifestError, read_manifest
from models.networks import NetworkParts, build_network, export_state, load_state
from models.networks.flops import layer_macs
from models.tasks import TASKS, parse_tasks
from models.wire.tensors import decode_tensors, encode_tensors

NAMES = parse_tasks("sdna")
SIZE = 48


def _trained_state(seed: int = 3) -> dict[str, np.ndarray]:
    """Weights whose BatchNorm statistics are not those of a new network."""
    network = build_network("pi", NAMES, SIZE, seed).train()
    random = torch.Generator().manual_seed(seed)
    for _ in range(3):
        with torch.no_grad():
            network(torch.rand(4, 3, SIZE, SIZE, generator=random))
    return export_state(network)


def _request(folder: Path) -> BundleRequest:
    state = folder / "trained"
    state.write_bytes(encode_tensors(_trained_state()))
    return BundleRequest(
        job="job-1",
        split="split-0",
        scheme="mas",
        network="pi",
        tasks=NAMES,
        size=SIZE,
        state=str(state),
        model_sha256="ab" * 32,
        lineage=("merged",),
        rounds=30,
        metrics={"normal": 0.25},
        version="0.1.0",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Manifest]:
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("bundle")
    return folder, bundle(_request(source), folder)


def test_a_bundle_is_four_files_and_its_manifest_names_their_hashes(made: tuple[Path, Manifest]) -> None:
    folder, manifest = made
    assert {path.name for path in folder.iterdir()} == {*FILES, MANIFEST}
    for name, entry in manifest.files.items():
        data = (folder / name).read_bytes()
        assert (entry.sha256, entry.size_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
    assert read_manifest((folder / MANIFEST).read_bytes()) == manifest


def test_the_manifest_says_how_to_use_the_model_and_where_it_comes_from(made: tuple[Path, Manifest]) -> None:
    told = json.loads((made[0] / MANIFEST).read_bytes())
    assert told["input"] == {"size": SIZE, "name": "picture", "layout": "NCHW", "scale": 1 / 255}
    depth = told["tasks"][1]
    assert depth == {
        "name": "depth_zbuffer",
        "letter": "d",
        "channels": 1,
        "kind": "values",
        "mean": [1500.0],
        "std": [1000.0],
        "scale": 1.0,
        "unit": "1/512 m",
    }
    assert told["tasks"][0]["kind"] == "classes"
    assert told["lineage"] == {
        "job": "job-1",
        "scheme": "mas",
        "splits": ["merged"],
        "rounds": 30,
        "model_sha256": "ab" * 32,
    }
    assert (told["metrics"], told["version"], told["opset"]) == ({"normal": 0.25}, "0.1.0", 17)


@pytest.mark.parametrize("batch", [1, 3])
def test_onnx_gives_torchs_outputs_at_any_batch_size(made: tuple[Path, Manifest], batch: int) -> None:
    session = onnxruntime.InferenceSession(str(made[0] / "model.onnx"), providers=["CPUExecutionProvider"])
    assert [output.name for output in session.get_outputs()] == list(NAMES)
    network = build_network("pi", NAMES, SIZE, seed=0)
    load_state(network, _trained_state())
    rgb = torch.rand(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = network.eval()(rgb)
    for name, value in zip(NAMES, session.run(None, {"picture": rgb.numpy()}), strict=True):
        assert value.shape == (batch, TASKS[name].channels, SIZE, SIZE)
        np.testing.assert_allclose(value, expected[name].numpy(), atol=1e-4)


def test_batchnorm_is_folded_and_nothing_of_this_machine_is_inside(made: tuple[Path, Manifest]) -> None:
    model = onnx.load(str(made[0] / "model.onnx"))
    assert {opset.version for opset in model.opset_import} == {17}
    operators = {node.op_type for node in model.graph.node}
    assert "Conv" in operators
    assert "BatchNormalization" not in operators
    assert not [node.name for node in model.graph.node if node.doc_string]
    assert str(Path(__file__).parent.parent.parent).encode() not in (made[0] / "model.onnx").read_bytes()


def test_the_reference_holds_torchs_outputs_and_the_weights_are_those_given(made: tuple[Path, Manifest]) -> None:
    reference = safetensors.numpy.load_file(made[0] / "reference.safetensors")
    network = build_network("pi", NAMES, SIZE, seed=0)
    weights = safetensors.numpy.load_file(made[0] / "model.safetensors")
    load_state(network, weights)
    with torch.no_grad():
        outputs = network.eval()(torch.from_numpy(reference["input"]))
    assert reference["input"].shape == (2, 3, SIZE, SIZE)
    assert set(reference) == {"input", *(f"output.{name}" for name in NAMES)}
    for name in NAMES:
        np.testing.assert_allclose(reference[f"output.{name}"], outputs[name].numpy(), atol=1e-5)
    expected = _trained_state()
    assert all(np.array_equal(weights[name], expected[name]) for name in expected)


def test_a_size_that_is_no_multiple_of_the_stride_exports_too(tmp_path: Path) -> None:
    network = build_network("pi", ("keypoints2d",), 40, seed=1).eval()
    write_onnx(network, 40, tmp_path / "odd.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "odd.onnx"), providers=["CPUExecutionProvider"])
    rgb = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(1))
    (output,) = session.run(None, {"picture": rgb.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(output, network(rgb)["keypoints2d"].numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "name", [
        "pi",
        "xception-small",
        pytest.param("xception-half", marks=pytest.mark.slow),
        pytest.param("xception-quad", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_every_network_exports_with_maps_and_vectors(tmp_path: Path, name: str) -> None:
    tasks = ("normal", "class_scene", "class_object", "distance")
    network = build_network(name, tasks, 64, seed=1).train()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for _ in range(2):
            network(torch.rand(4, 3, 64, 64, generator=random))
    before = export_state(network)
    write_onnx(network.eval(), 64, tmp_path / "model.onnx")
    assert all(np.array_equal(before[key], value) for key, value in export_state(network).items())
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    rgb = torch.rand(3, 3, 64, 64, generator=random)
    with torch.no_grad():
        expected = network(rgb)
    for task, value in zip(tasks, session.run(None, {"picture": rgb.numpy()}), strict=True):
        assert value.shape == expected[task].shape
        np.testing.assert_allclose(value, expected[task].numpy(), atol=1e-4)


def test_batchnorm_that_cannot_be_folded_is_refused(tmp_path: Path) -> None:
    parts = NetworkParts(lambda: nn.BatchNorm2d(3), lambda channels: nn.Conv2d(3, channels, 1), stride=1)
    network = build_network("bare", ("keypoints2d",), 16, seed=0, networks={"bare": parts}).eval()
    with pytest.raises(ExportError, match="not folded"):
        write_onnx(network, 16, tmp_path / "bare.onnx")


def test_initial_weights_are_those_of_the_network_and_seed(tmp_path: Path) -> None:
    initialise(InitRequest("pi", NAMES, SIZE, seed=9), tmp_path)
    parts = msgspec.json.decode((tmp_path / PARTS).read_bytes(), type=dict[str, PartWork])
    assert {part: work.macs for part, work in parts.items()} == layer_macs("pi", NAMES, SIZE)
    assert set(parts) == {ENCODER, *NAMES}
    assert sum(work.parameters for work in parts.values()) == sum(
        array.size for array in export_state(build_network("pi", NAMES, SIZE, 9)).values()
    )
    state = decode_tensors((tmp_path / "state.blob").read_bytes())
    expected = export_state(build_network("pi", NAMES, SIZE, seed=9))
    assert state.keys() == expected.keys()
    assert all(np.array_equal(state[name], expected[name]) for name in expected)


def test_the_command_ends_quietly_or_says_why_it_failed(tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"network": "pi", "tasks": list(NAMES), "size": SIZE, "seed": 9}))
    command = [sys.executable, "-W", "error", "-m", "aggregator.export", "init", str(request), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "state.blob").is_file()


@pytest.mark.parametrize(
    ("what", "request_", "expected"),
    [
        ("init", {"network": "resnet", "tasks": ["normal"], "size": 64, "seed": 1}, "unknown network 'resnet'"),
        ("init", {"network": "pi", "tasks": ["colour"], "size": 64, "seed": 1}, "unknown tasks ['colour']"),
        ("init", {"network": "pi", "tasks": ["normal"], "size": 64}, "seed"),
        ("polish", {}, "unknown request 'polish'"),
    ],
)
def test_bad_requests_fail_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str, request_: dict[str, object], expected: str
) -> None:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(request_))
    assert main([what, str(path), str(tmp_path)]) == 1
    said = capsys.readouterr().err
    assert expected in said
    assert said.count("\n") == 1


def test_a_state_of_another_network_makes_no_bundle(tmp_path: Path) -> None:
    request = _request(tmp_path)
    Path(request.state).write_bytes(encode_tensors(export_state(build_network("pi", ("normal",), SIZE, seed=0))))
    with pytest.raises(ValueError, match=r"heads\.segment_semantic.* is missing"):
        bundle(request, tmp_path)
    assert not (tmp_path / MANIFEST).exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"format": 2}, "format 2"),
        ({"files": {}}, "files none"),
        ({"tasks": []}, "no task"),
        ({"extra": 1}, "unknown field"),
        ({"input": {"size": 0}}, "manifest cannot be read"),
    ],
)
def test_manifests_that_cannot_be_used_are_refused(
    made: tuple[Path, Manifest], change: dict[str, object], expected: str
) -> None:
    told = {**json.loads((made[0] / MANIFEST).read_bytes()), **change}
    with pytest.raises(ManifestError, match=expected):
        read_manifest(json.dumps(told).encode())
