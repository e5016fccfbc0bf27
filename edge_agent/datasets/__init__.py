"""Datasets on the device: Taskonomy's layout and the formats of other packages, read without torch.

Names are looked up when they are used: the daemon reads folders and the manifest, and should not hold numpy and the
image code in memory for that.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_agent.datasets.buildings import Batch, BuildingsDataset, Split
    from edge_agent.datasets.check import Fault, check_dataset
    from edge_agent.datasets.formats import DATASETS, opener
    from edge_agent.datasets.images import SampleFault
    from edge_agent.datasets.layout import DatasetError, Manifest, Sample, read_manifest
    from edge_agent.datasets.taskonomy import open_dataset

__all__ = [
    "DATASETS",
    "Batch",
    "BuildingsDataset",
    "DatasetError",
    "Fault",
    "Manifest",
    "Sample",
    "SampleFault",
    "Split",
    "check_dataset",
    "open_dataset",
    "opener",
    "read_manifest",
]

_HOMES = {
    "buildings": ("Batch", "BuildingsDataset", "Split"),
    "formats": ("DATASETS", "opener"),
    "check": ("Fault", "check_dataset"),
    "images": ("SampleFault",),
    "layout": ("DatasetError", "Manifest", "Sample", "read_manifest"),
    "taskonomy": ("open_dataset",),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            found: object = getattr(importlib.import_module(f"{__name__}.{home}"), name)
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
