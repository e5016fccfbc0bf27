"""Datasets in a format that another package brings: opened, checked, counted and trained on like our own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from edge_agent.config import DataConfig
from edge_agent.datasets import BuildingsDataset, DatasetError, Sample, SampleFault, check_dataset, formats
from edge_agent.datasets.images import ImageError
from edge_agent.datasets.vectors import as_vector
from edge_agent.inventory import InventoryError, take_inventory
from edge_agent.trainer.protocol import Setup
from edge_agent.trainer.samples import Stock
from models.plugins import PluginError, Registry
from models.tasks import TASKS

BUILDINGS = {"attic": 9, "cellar": 4}
HAS = ("rgb", "edge_texture", "distance")


def open_archive(
    root: Path,
    buildings: Sequence[str] | None,
    tasks: Sequence[str],
    size: int,
    *,
    test_buildings: Sequence[str] | None = None,
    cache_bytes: int = 2**20,
) -> BuildingsDataset:
    """A folder of one array file for each building, `<building>.npz`: the format of this test."""
    chosen = list(BUILDINGS) if buildings is None else list(buildings)
    lacking = [f"{root}: no {task}" for task in tasks if task not in HAS]
    lacking += [f"{root}: no {name}" for name in chosen if name not in BUILDINGS]
    if lacking:
        raise DatasetError(lacking)

    def read(sample: Sample, domain: str) -> np.ndarray:
        path = root / f"{sample.building}.npz"
        with np.load(path) as arrays:
            stored = arrays[domain][sample.point]
        if domain == "distance":
            return as_vector(path, TASKS[domain], float(stored))
        if not stored.any():
            raise ImageError(SampleFault(path, f"{domain} {sample.point} is blank"))
        return stored

    return BuildingsDataset(
        root=root,
        tasks=tuple(TASKS[name] for name in tasks),
        size=size,
        index=tuple(Sample(name, point, 0) for name in chosen for point in range(BUILDINGS[name])),
        test_buildings=frozenset(["cellar"] if test_buildings is None else test_buildings),
        read=read,
        cache_bytes=cache_bytes,
    )


class Point(NamedTuple):
    """An entry point of a package that is not installed."""

    name: str
    loaded: object
    value: str = "package:opener"
    group: str = formats.DATASETS.group
    dist: object = None

    def load(self) -> object:
        return self.loaded


def plug_in(monkeypatch: pytest.MonkeyPatch, *points: Point) -> None:
    import importlib.metadata

    own = formats.DATASETS
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda *, group: points if group == own.group else [])
    monkeypatch.setattr(formats, "DATASETS", Registry(own.group, own._builtin, own._expand))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    rng = np.random.default_rng(0)
    for name, views in BUILDINGS.items():
        arrays = {
            "rgb": rng.integers(1, 256, (views, 20, 20, 3), dtype=np.uint8),
            "edge_texture": rng.integers(1, 9000, (views, 20, 20)).astype(np.uint16),
            "distance": rng.random(views),
        }
        np.savez(tmp_path / f"{name}.npz", **arrays)
    plug_in(monkeypatch, Point("archive", open_archive))
    return tmp_path


def blank(root: Path, building: str, domain: str, view: int) -> None:
    with np.load(root / f"{building}.npz") as stored:
        arrays = dict(stored)
    arrays[domain][view] = 0
    np.savez(root / f"{building}.npz", **arrays)


def test_a_stock_trains_on_it(root: Path) -> None:
    setup = Setup(str(root), ("attic",), ("cellar",), threads=1, cache_bytes=2**20, data_format="archive")
    sides = {
        side: Stock(setup).samples(side, ("edge_texture", "distance"), 16, 0.0) for side in ("train", "val", "test")
    }
    assert len(sides["train"]) + len(sides["val"]) == 9
    assert len(sides["test"]) == 4
    batch = sides["test"].load([1, 3])
    assert (batch.rgb.shape, batch.targets["distance"].shape) == ((2, 3, 16, 16), (2, 1))


def test_an_agent_counts_it(root: Path) -> None:
    found = take_inventory(DataConfig(str(root), test=("cellar",), format="archive"))
    assert (found.train, found.test) == (("attic",), ("cellar",))
    assert (found.train_samples + found.val_samples, found.test_samples) == (9, 4)
    assert set(found.labels) == set(HAS)
    assert take_inventory(DataConfig(str(root), format="archive")).train == ("attic",), "it names its test buildings"


def test_an_agents_faults_with_it_are_named(root: Path) -> None:
    with pytest.raises(InventoryError, match="cellar is a test building and must not be trained on"):
        take_inventory(DataConfig(str(root), train=("cellar",), format="archive"))
    with pytest.raises(InventoryError, match="no roof"):
        take_inventory(DataConfig(str(root), train=("roof",), format="archive"))
    with pytest.raises(InventoryError, match="no data format 'parquet'; known are taskonomy, archive"):
        take_inventory(DataConfig(str(root), format="parquet"))


def test_the_check_reads_it(root: Path) -> None:
    assert check_dataset(root, ("edge_texture",), data_format="archive") == []
    blank(root, "attic", "edge_texture", 0)
    blank(root, "cellar", "edge_texture", 2)
    found = check_dataset(root, ("edge_texture",), data_format="archive")
    assert [str(fault) for fault in found] == [
        f"{root / 'attic.npz'}: edge_texture 0 is blank",
        f"{root / 'cellar.npz'}: edge_texture 2 is blank",
    ]
    assert len(check_dataset(root, ("edge_texture",), data_format="archive", thorough=False)) == 1
    few = check_dataset(root, ("distance",), data_format="archive", batch_size=50, buildings=["attic"])
    assert [fault.path.name for fault in few] == ["attic"]
    assert [fault.reason for fault in check_dataset(root, ("normal",), data_format="archive")] == [f"{root}: no normal"]


def test_pixels_of_another_type_are_a_fault_of_the_sample(root: Path) -> None:
    with np.load(root / "attic.npz") as stored:
        arrays = {name: values.astype(np.float32) for name, values in stored.items()}
    np.savez(root / "attic.npz", **arrays)
    data = open_archive(root, ["attic"], ["edge_texture"], 16)
    assert len(data.load([0])) == 0
    assert [fault.reason for fault in data.faults] == [
        "read as float32, stored is uint8",
        "read as float32, stored is uint16",
    ]


def test_what_is_no_opener_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    plug_in(monkeypatch, Point("archive", "text"), Point("taskonomy", open_archive))
    with pytest.raises(PluginError) as caught:
        formats.opener("archive")
    assert "archive must be a function that opens a dataset, and is 'text'" in caught.value.faults[0]
    assert "name taskonomy is taken by mas-edge itself" in caught.value.faults[1]
