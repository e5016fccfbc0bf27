"""The furniture sets of one folder, opened once: listings, archives, and the models that rooms have used lately.

Reading models is most of the work of a small dataset; a building's rooms share their furniture.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from functools import lru_cache
from pathlib import Path

from tools.scenes.catalogue import Model, read_catalogue
from tools.scenes.meshes import Mesh, ModelError, load_model

#: Models and textures kept in memory by each process; a building owns about 250 MB of them.
KEPT_BYTES = 320 * 2**20


class Library:
    """Models of a catalogue by need. Not for threads: each worker process has its own."""

    def __init__(self, folder: Path, kept_bytes: int = KEPT_BYTES) -> None:
        self.models = read_catalogue(folder)
        self._kept_bytes = kept_bytes
        self._held_bytes = 0
        self._archives: dict[Path, zipfile.ZipFile] = {}
        self._meshes: OrderedDict[str, Mesh] = OrderedDict()
        self._broken: dict[str, str] = {}

    def load(self, model: Model) -> Mesh:
        """A model's triangles; those used longest ago are dropped for it. Raises ModelError."""
        if model.key in self._broken:
            raise ModelError(self._broken[model.key])
        mesh = self._meshes.get(model.key)
        if mesh is None:
            mesh = self._read(model)
            self._meshes[model.key] = mesh
            self._held_bytes += mesh.nbytes
            while self._held_bytes > self._kept_bytes and len(self._meshes) > 1:
                self._held_bytes -= self._meshes.popitem(last=False)[1].nbytes
        self._meshes.move_to_end(model.key)
        return mesh

    def _read(self, model: Model) -> Mesh:
        if model.archive not in self._archives:
            self._archives[model.archive] = zipfile.ZipFile(model.archive)
        try:
            return load_model(model, self._archives[model.archive])
        except ModelError as error:
            self._broken[model.key] = str(error)
            raise


def open_library(folder: Path) -> Library:
    """The library of a folder, the same one again while its sets do not change. Raises CatalogueError."""
    archives = sorted(folder.rglob("*.sh3f"))
    return _library(folder, tuple((path, path.stat().st_size, path.stat().st_mtime_ns) for path in archives))


@lru_cache(maxsize=1)
def _library(folder: Path, _state: tuple[tuple[Path, int, int], ...]) -> Library:
    # A memory of files, keyed by their state: it makes nothing come out differently, only sooner.
    return Library(folder)
