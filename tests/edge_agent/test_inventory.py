"""What a device says it has, and every way in which its settings and its data may not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_agent.config import DataConfig
from edge_agent.datasets import open_dataset
from edge_agent.datasets.layout import Buildings, Generator, Manifest
from edge_agent.inventory import Inventory, InventoryError, take_inventory


def put(root: Path, domain: str, building: str, views: int) -> None:
    """Files with the names of pictures; nobody opens them here."""
    folder = root / domain / building
    folder.mkdir(parents=True, exist_ok=True)
    for point in range(views):
        (folder / f"point_{point}_view_0_domain_{domain}.png").touch()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for building, views in (("attic", 3), ("hall", 4), ("kitchen", 5)):
        put(tmp_path, "rgb", building, views)
        put(tmp_path, "normal", building, views)
    put(tmp_path, "depth_zbuffer", "hall", 4)
    put(tmp_path, "depth_zbuffer", "kitchen", 5)
    return tmp_path


def write_manifest(root: Path, train: list[str], test: list[str]) -> None:
    manifest = Manifest(1, "rooms", Generator("by hand", 0, "0"), 32, ["rgb"], Buildings(train, test), {}, {})
    (root / "mas-dataset.json").write_bytes(manifest.to_json())


def take(root: Path, train: tuple[str, ...] | None = None, test: tuple[str, ...] = ()) -> Inventory:
    return take_inventory(DataConfig(str(root), train, test))


def test_named_buildings_are_counted_and_only_labels_of_all_of_them_are_offered(root: Path) -> None:
    found = take(root, ("hall",), ("kitchen",))
    assert found == Inventory(("hall",), ("kitchen",), ("depth_zbuffer", "normal", "rgb"), 4, 5)
    assert take(root, ("attic",)).val_samples == 1
    assert (take(root, ("kitchen",)).train_samples, take(root, ("attic",)).train_samples) == (4, 2), "one is kept back"
    assert take(root, ("hall",), ("attic",)).labels == ("normal", "rgb"), "the attic has no depth"


def test_without_a_choice_everything_is_trained_on_but_what_is_held_out(root: Path) -> None:
    assert take(root).train == ("attic", "hall", "kitchen")
    assert take(root, test=("hall",)).train == ("attic", "kitchen")
    write_manifest(root, ["attic", "hall"], ["kitchen"])
    found = take(root)
    assert found.train == ("attic", "hall"), "the dataset's own test buildings are never trained on"
    # Point 0 of the attic is kept for validation.
    assert (found.train_samples, found.test_samples) == (6, 0)


def test_a_device_may_only_evaluate(root: Path) -> None:
    found = take(root, (), ("kitchen",))
    assert (found.train, found.train_samples, found.test_samples) == ((), 0, 5)


def test_every_fault_is_named_at_once(root: Path) -> None:
    write_manifest(root, ["attic", "hall"], ["kitchen"])
    with pytest.raises(InventoryError) as caught:
        take(root, ("cellar", "kitchen", "hall"), ("roof", "hall"))
    text = str(caught.value)
    assert f"building cellar is not under {root / 'rgb'}" in text
    assert "building roof is not under" in text
    assert "building kitchen is a test building and must not be trained on" in text
    assert "building hall is a test building and must not be trained on" in text
    assert "building hall is no test building by mas-dataset.json (it names kitchen), so other devices may" in text
    assert "building roof is no test building by mas-dataset.json" in text
    assert text.count(";") == 5, text


def test_only_what_the_dataset_names_as_test_buildings_is_tested_on(root: Path) -> None:
    assert take(root, ("hall",), ("attic",)).test == ("attic",), "without a manifest, its owner is responsible"
    write_manifest(root, ["attic", "hall"], ["kitchen"])
    assert take(root, ("hall",), ("kitchen",)).test == ("kitchen",)
    with pytest.raises(InventoryError, match=r"building attic is no test building .*it names kitchen"):
        take(root, ("hall",), ("attic",))
    write_manifest(root, ["attic", "hall"], [])
    with pytest.raises(InventoryError, match=r"building attic is no test building .*it names none"):
        take(root, ("hall",), ("attic",))


def test_what_is_counted_is_what_a_trainer_gets(root: Path) -> None:
    opened = open_dataset(root, ("attic", "hall", "kitchen"), ("normal",), 32)
    assert take(root).train_samples == len(opened.split().train) == 10 < len(opened)


def test_nothing_to_work_with_is_a_fault(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"no building under .* to train or test on"):
        take(root, ())


def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path) -> None:
    with pytest.raises(InventoryError, match=r"data\.root .*nowhere: .*rgb is not a folder"):
        take(tmp_path / "nowhere")


def test_a_manifest_that_cannot_be_used_is_named(root: Path) -> None:
    (root / "mas-dataset.json").write_text("{}")
    with pytest.raises(InventoryError, match=r"mas-dataset\.json: .*missing required field"):
        take(root)
    write_manifest(root, [], [])
    newer = msgspec.json.decode((root / "mas-dataset.json").read_bytes()) | {"format": 99}
    (root / "mas-dataset.json").write_bytes(msgspec.json.encode(newer))
    with pytest.raises(InventoryError, match="format 99"):
        take(root)


def test_counting_pictures_needs_none_of_what_opens_them() -> None:
    """The daemon takes the inventory and then stays; only its trainer holds these."""
    code = "import sys, edge_agent.daemon; print([n for n in ('numpy', 'PIL', 'torch') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
