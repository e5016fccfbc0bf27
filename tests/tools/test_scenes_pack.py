"""The pack that ships with the demo is whole, sound, small, and can be made again."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

from edge_agent.datasets import check_dataset, open_dataset, read_manifest
from tools.scenes.dataset import GENERATOR_VERSION
from tools.scenes.encode import domains_of
from tools.scenes.job import Plan

PACK = Path(str(files("tools.demo"))) / "pack"
TASKS = ("segment_semantic", "depth_zbuffer", "normal", "keypoints2d", "edge_texture")


def test_the_pack_is_sound() -> None:
    assert check_dataset(PACK, TASKS) == []


def test_the_pack_is_what_the_defaults_make() -> None:
    """Its five tasks' share of it: the command has learned to write further labels since."""
    manifest = read_manifest(PACK)
    assert manifest is not None
    assert manifest.generator.command == Plan().command()
    assert manifest.generator.version == GENERATOR_VERSION
    assert tuple(manifest.domains) == domains_of("sdnkt")
    assert len(manifest.buildings.train) == 12
    assert len(manifest.buildings.test) == 3


def test_the_pack_takes_at_most_10_megabytes() -> None:
    assert sum(path.stat().st_size for path in PACK.rglob("*") if path.is_file()) <= 10_000_000


def test_every_client_can_train_and_validate() -> None:
    manifest = read_manifest(PACK)
    assert manifest is not None
    for building in manifest.buildings.train:
        split = open_dataset(PACK, [building], TASKS, 64).split()
        assert len(split.train) >= 24
        assert len(split.val) >= 4
        assert len(split.test) == 0


def test_attributions_come_along() -> None:
    text = (PACK / "ATTRIBUTIONS.md").read_text()
    assert "CC-BY 3.0" in text
    assert "Scopia" in text
    assert text.count("\n| ") > 100
