"""Everything that is wrong with a dataset, all at once, each fault with its path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_agent.datasets.images import ImageError, Pixels, read_image
from edge_agent.datasets.layout import (
    DEPTH,
    ENCODINGS,
    MANIFEST,
    RGB,
    DatasetError,
    Manifest,
    Sample,
    image_path,
    list_buildings,
    list_samples,
    parse_name,
    read_manifest,
)
from models.tasks import TASKS


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong: where (a file or a folder) and what."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


def check_dataset(root: Path, tasks: Sequence[str] = ()) -> list[Fault]:
    """Every fault of the dataset at `root`, sorted by path; an empty list means that it can be trained on.

    `tasks` (full names) adds domains that must be there beside those that the manifest names.
    """
    if not root.is_dir():
        return [Fault(root, "not a folder")]
    try:
        manifest = read_manifest(root)
        buildings = list_buildings(root)
    except DatasetError as error:
        return [Fault(root, reason) for reason in error.faults]
    domains = _domains(root, manifest, tasks)
    faults = [Fault(root / domain, "missing domain") for domain in domains if not (root / domain).is_dir()]
    faults += _manifest_faults(root, manifest, buildings) if manifest else []
    present = [domain for domain in domains if (root / domain).is_dir()]
    for domain in present:
        faults += _stray(root, domain, set(buildings) | set(manifest.images if manifest else ()))
    for building in buildings:
        faults += _building_faults(root, building, present)
    return sorted(set(faults), key=lambda fault: (str(fault.path), fault.reason))


def _domains(root: Path, manifest: Manifest | None, tasks: Sequence[str]) -> list[str]:
    named = list(manifest.domains) if manifest else [domain for domain in ENCODINGS if (root / domain).is_dir()]
    for name in tasks:
        named.append(TASKS[name].domain)
        named += [DEPTH] if TASKS[name].masked else []
    return [domain for domain in dict.fromkeys([RGB, *named]) if domain in ENCODINGS]


def _manifest_faults(root: Path, manifest: Manifest, buildings: list[str]) -> Iterator[Fault]:
    path = root / MANIFEST
    train, test = manifest.buildings.train, manifest.buildings.test
    for domain in manifest.domains:
        if domain not in ENCODINGS:
            yield Fault(path, f"unknown domain {domain!r}; known are {', '.join(ENCODINGS)}")
    for name in sorted(set(train) & set(test)):
        yield Fault(path, f"building {name} is listed for training and for testing")
    for name in dict.fromkeys([*train, *test]):
        if name not in buildings:
            yield Fault(path, f"building {name} is listed but absent")
    for name in buildings:
        if name not in train and name not in test:
            yield Fault(root / RGB / name, "building is not listed for training or testing")
    for name, count in manifest.images.items():
        found = len(list_samples(root, name))
        if name in buildings and found != count:
            yield Fault(path, f"building {name} should have {count} images and has {found}")


def _stray(root: Path, domain: str, buildings: set[str]) -> Iterator[Fault]:
    for folder in sorted((root / domain).iterdir()):
        if not folder.is_dir():
            yield Fault(folder, "stray file beside the building folders")
            continue
        if folder.name not in buildings:
            yield Fault(folder, f"building has no pictures in {RGB}")
        for entry in sorted(folder.iterdir()):
            name = parse_name(entry.name)
            if name is None or not entry.is_file():
                yield Fault(entry, "stray name; images are called point_<P>_view_<V>_domain_<domain>.png")
            elif name[2] != domain:
                yield Fault(entry, f"says domain {name[2]} in the folder of {domain}")


def _building_faults(root: Path, building: str, domains: list[str]) -> Iterator[Fault]:
    views: dict[str, set[Sample]] = {domain: set(list_samples(root, building, domain)) for domain in domains}
    if not views[RGB]:
        yield Fault(root / RGB / building, "building without images")
    for sample in sorted(set().union(*views.values())):
        missing = [domain for domain in domains if sample not in views[domain]]
        for domain in missing:
            yield Fault(image_path(root, domain, sample), "missing")
        yield from _sample_faults(root, sample, [domain for domain in domains if domain not in missing])


def _sample_faults(root: Path, sample: Sample, domains: list[str]) -> Iterator[Fault]:
    sizes: dict[str, tuple[int, int]] = {}
    for domain in domains:
        path = image_path(root, domain, sample)
        try:
            pixels = read_image(path, domain)
        except ImageError as error:
            yield Fault(error.fault.path, error.fault.reason)
            continue
        sizes[domain] = (pixels.shape[1], pixels.shape[0])
        yield from _value_faults(path, domain, pixels)
    wanted = sizes.get(RGB)
    for domain, size in sizes.items():
        if wanted is not None and size != wanted:
            where = image_path(root, domain, sample)
            yield Fault(where, f"{size[0]}x{size[1]} pixels, its picture has {wanted[0]}x{wanted[1]}")


def _value_faults(path: Path, domain: str, pixels: Pixels) -> Iterator[Fault]:
    spec = TASKS.get(domain)
    if spec is not None and spec.is_classes:
        wrong = np.unique(pixels[pixels >= spec.channels])
        if wrong.size:
            listed = ", ".join(str(number) for number in wrong[:5])
            yield Fault(path, f"class ids out of range 0..{spec.channels - 1}: {listed}")
