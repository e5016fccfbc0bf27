"""What a device can offer a job: its labels, and how many pictures it may train and evaluate on. Opens no picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import DataConfig
from edge_agent.datasets.layout import (
    MANIFEST,
    RGB,
    DatasetError,
    Manifest,
    Sample,
    list_buildings,
    list_samples,
    read_manifest,
)
from edge_agent.datasets.split import VALIDATION_SHARE, point_share
from models.tasks import TASKS


class InventoryError(Exception):
    """The settings and the data do not fit together; every fault is named."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`labels` are tasks for which every building here has a folder of labels.

    `train_samples` are the views that are trained on: those kept for validation are not among them.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: tuple[str, ...]
    train_samples: int
    test_samples: int


def take_inventory(config: DataConfig) -> Inventory:
    """Look at the data of this device. Raises InventoryError naming everything that is wrong.

    A building that one device tests on must be trained on by none. With a manifest, that is seen to here: it alone
    says which buildings are for testing. Without one, a device knows only its own settings, and whoever writes those
    of the fleet is responsible.
    """
    root = Path(config.root)
    try:
        present, manifest = list_buildings(root), read_manifest(root)
    except DatasetError as error:
        raise InventoryError(f"data.root {root}: {'; '.join(error.faults)}") from error
    held_out = set(config.test) | (set(manifest.buildings.test) if manifest else set())
    train = config.train if config.train is not None else tuple(b for b in present if b not in held_out)
    faults = [f"building {name} is not under {root / RGB}" for name in (*train, *config.test) if name not in present]
    faults += [f"building {name} is a test building and must not be trained on" for name in train if name in held_out]
    faults += _not_for_testing(config.test, manifest)
    if not train and not config.test:
        faults.append(f"no building under {root / RGB} to train or test on")
    if faults:
        raise InventoryError("; ".join(faults))
    buildings = (*train, *config.test)
    labels = tuple(task for task in TASKS if all((root / task / building).is_dir() for building in buildings))
    trained_on = sum(point_share(sample) >= VALIDATION_SHARE for sample in _samples(root, train))
    return Inventory(tuple(train), config.test, labels, trained_on, sum(1 for _ in _samples(root, config.test)))


def _not_for_testing(test: Iterable[str], manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    named = manifest.buildings.test
    known = f"it names {', '.join(named) or 'none'}"
    return [
        f"building {name} is no test building by {MANIFEST} ({known}), so other devices may train on it"
        for name in test
        if name not in named
    ]


def _samples(root: Path, buildings: Iterable[str]) -> Iterator[Sample]:
    return (sample for building in buildings for sample in list_samples(root, building))
