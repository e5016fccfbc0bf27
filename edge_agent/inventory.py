"""What a device can offer a job: its labels, and how many pictures it may train and evaluate on. Opens no picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import DataConfig
from edge_agent.datasets.layout import RGB, DatasetError, list_buildings, list_samples, read_manifest
from models.tasks import TASKS


class InventoryError(Exception):
    """The settings and the data do not fit together; every fault is named."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`labels` are tasks for which every building here has a folder of labels."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: tuple[str, ...]
    train_samples: int
    test_samples: int


def take_inventory(config: DataConfig) -> Inventory:
    """Look at the data of this device. Raises InventoryError naming everything that is wrong."""
    root = Path(config.root)
    try:
        present, manifest = list_buildings(root), read_manifest(root)
    except DatasetError as error:
        raise InventoryError(f"data.root {root}: {'; '.join(error.faults)}") from error
    held_out = set(config.test) | (set(manifest.buildings.test) if manifest else set())
    train = config.train if config.train is not None else tuple(b for b in present if b not in held_out)
    faults = [f"building {name} is not under {root / RGB}" for name in (*train, *config.test) if name not in present]
    faults += [f"building {name} is a test building and must not be trained on" for name in train if name in held_out]
    if not train and not config.test:
        faults.append(f"no building under {root / RGB} to train or test on")
    if faults:
        raise InventoryError("; ".join(faults))
    buildings = (*train, *config.test)
    labels = tuple(task for task in TASKS if all((root / task / building).is_dir() for building in buildings))
    return Inventory(tuple(train), config.test, labels, _count(root, train), _count(root, config.test))


def _count(root: Path, buildings: Iterable[str]) -> int:
    return sum(len(list_samples(root, building)) for building in buildings)
