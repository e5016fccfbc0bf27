"""What a device can offer a job: its labels, and how many pictures it may train and evaluate on. Opens no picture."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edge_agent.config import DataConfig
from edge_agent.datasets.formats import TASKONOMY, Opener, opener
from edge_agent.datasets.layout import (
    MANIFEST,
    RGB,
    DatasetError,
    Manifest,
    Sample,
    domain_folder,
    list_buildings,
    list_samples,
    read_manifest,
)
from edge_agent.datasets.split import VALIDATION_SHARE, point_share
from models.plugins import PluginError
from models.tasks import TASKS

#: Nothing is decoded at it.
_ANY_SIZE = 32


class InventoryError(Exception):
    """The settings and the data do not fit together; every fault is named."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """`labels` are tasks for which every building here has a folder of labels.

    `train_samples` are the views that are trained on: those kept for validation, `val_samples`, are not among them.
    """

    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: tuple[str, ...]
    train_samples: int
    test_samples: int
    val_samples: int = 0


def take_inventory(config: DataConfig) -> Inventory:
    """Look at the data of this device. Raises InventoryError naming everything that is wrong.

    A building that one device tests on must be trained on by none. With a manifest, that is seen to here: it alone
    says which buildings are for testing. Without one, a device knows only its own settings, and whoever writes those
    of the fleet is responsible.
    """
    if config.format != TASKONOMY:
        return _opened(config)
    root = Path(config.root)
    try:
        present, manifest = list_buildings(root), read_manifest(root)
    except DatasetError as error:
        raise InventoryError(f"data.root {root}: {'; '.join(error.faults)}") from error
    held_out = set(config.test) | (set(manifest.buildings.test) if manifest else set())
    train = config.train if config.train is not None else tuple(b for b in present if b not in held_out)
    faults = [f"building {name} is not under {root / RGB}" for name in (*train, *config.test) if name not in present]
    faults += _held_out_faults(train, held_out)
    faults += _not_for_testing(config.test, manifest)
    if not train and not config.test:
        faults.append(f"no building under {root / RGB} to train or test on")
    if faults:
        raise InventoryError("; ".join(faults))
    buildings = (*train, *config.test)
    labels = tuple(task for task in TASKS if all((domain_folder(root, task) / b).is_dir() for b in buildings))
    kept_back = [point_share(sample) < VALIDATION_SHARE for sample in _samples(root, train)]
    tested_on = sum(1 for _ in _samples(root, config.test))
    return Inventory(train, config.test, labels, len(kept_back) - sum(kept_back), tested_on, sum(kept_back))


def _opened(config: DataConfig) -> Inventory:
    """The inventory of another format, as its dataset tells it when it is opened (which needs numpy)."""
    root = Path(config.root)
    try:
        opens = opener(config.format)
        whole = opens(root, None, (RGB,), _ANY_SIZE)
        held_out = whole.test_buildings | set(config.test)
        present = tuple(dict.fromkeys(sample.building for sample in whole.index))
        train = config.train if config.train is not None else tuple(b for b in present if b not in held_out)
        buildings = tuple(dict.fromkeys((*train, *config.test)))
        if faults := _held_out_faults(train, held_out):
            raise DatasetError(faults)
        chosen = opens(root, buildings, (RGB,), _ANY_SIZE, test_buildings=sorted(held_out))
    except (DatasetError, PluginError) as error:
        raise InventoryError(f"data.root {root}: {'; '.join(error.faults)}") from error
    split = chosen.split()
    labels = tuple(task for task in TASKS if _can_open(opens, root, buildings, task))
    return Inventory(train, config.test, labels, len(split.train), len(split.test), len(split.val))


def _can_open(opens: Opener, root: Path, buildings: tuple[str, ...], task: str) -> bool:
    try:
        opens(root, buildings, (task,), _ANY_SIZE)
    except DatasetError:
        return False
    return True


def _held_out_faults(train: Iterable[str], held_out: Iterable[str]) -> list[str]:
    kept = set(held_out)
    return [f"building {name} is a test building and must not be trained on" for name in train if name in kept]


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
