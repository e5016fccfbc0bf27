"""How datasets are stored, by name: Taskonomy's layout, and the formats of other packages.

An entry point of the group `mas_edge.datasets` is named as its format and loads to an opener: a function with the
parameters of `taskonomy.open_dataset`, which gives a `BuildingsDataset` with a reader of its own, or raises
DatasetError. numpy comes with the first dataset that is opened, not with this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from edge_agent.datasets.layout import DatasetError
from models.plugins import Registry

if TYPE_CHECKING:
    from edge_agent.datasets.buildings import BuildingsDataset

TASKONOMY = "taskonomy"


class Opener(Protocol):
    """Opens a dataset of one format; parameters as of `taskonomy.open_dataset`."""

    def __call__(
        self,
        root: Path,
        buildings: Sequence[str] | None,
        tasks: Sequence[str],
        size: int,
        *,
        test_buildings: Sequence[str] | None = None,
        cache_bytes: int = ...,
    ) -> BuildingsDataset:
        """Index some buildings for some tasks. Raises DatasetError with every reason at once."""


def _taskonomy(
    root: Path,
    buildings: Sequence[str] | None,
    tasks: Sequence[str],
    size: int,
    *,
    test_buildings: Sequence[str] | None = None,
    cache_bytes: int = 256 * 2**20,
) -> BuildingsDataset:
    from edge_agent.datasets.taskonomy import open_dataset

    return open_dataset(root, buildings, tasks, size, test_buildings=test_buildings, cache_bytes=cache_bytes)


def _from_plugin(name: str, loaded: object) -> dict[str, Opener]:
    if not callable(loaded):
        raise TypeError(f"{name} must be a function that opens a dataset, and is {loaded!r}")
    return {name: cast(Opener, loaded)}


#: Openers by format.
DATASETS: Registry[Opener] = Registry("mas_edge.datasets", {TASKONOMY: _taskonomy}, _from_plugin)


def opener(data_format: str) -> Opener:
    """The opener of a format. Raises DatasetError for one that is not known, PluginError for broken packages."""
    if data_format not in DATASETS:
        raise DatasetError([f"no data format {data_format!r}; known are {', '.join(DATASETS)}"])
    return DATASETS[data_format]
