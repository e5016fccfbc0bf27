"""Everything that is wrong with a dataset, all at once, each fault with its path."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_agent.datasets.buildings import class_fault
from edge_agent.datasets.formats import TASKONOMY, opener
from edge_agent.datasets.images import ImageError, read_image
from edge_agent.datasets.layout import (
    DEPTH,
    MANIFEST,
    RGB,
    DatasetError,
    Manifest,
    Sample,
    domain_folder,
    file_suffix,
    image_path,
    list_buildings,
    list_samples,
    parse_name,
    read_manifest,
)
from edge_agent.datasets.split import VALIDATION_SHARE, point_share
from edge_agent.datasets.vectors import read_vector
from models.tasks import TASKS

#: `progress(done, total)`, in views.
Progress = Callable[[int, int], None]
#: Pictures are opened at this size where only their faults are wanted.
_ANY_SIZE = 32


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong: where (a file or a folder) and what."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is looked at: `strict` also tells what is there and belongs to nothing."""

    root: Path
    domains: tuple[str, ...]
    buildings: tuple[str, ...]
    manifest: Manifest | None
    strict: bool


def check_dataset(
    root: Path,
    tasks: Sequence[str] = (),
    *,
    buildings: Sequence[str] | None = None,
    test_buildings: Sequence[str] | None = None,
    batch_size: int = 0,
    thorough: bool = True,
    data_format: str = TASKONOMY,
    progress: Progress | None = None,
) -> list[Fault]:
    """Every fault of the dataset at `root`, sorted by path; an empty list means that it can be trained on.

    `tasks` (full names) adds domains that must be there beside those that the manifest names.
    `buildings` looks at these only, and for what `tasks` need only: what a job asks of its clients.
    `test_buildings`: those of them that nobody trains on (None: as the manifest says).
    `batch_size`: a building with fewer pictures to train on, after those for validation, is a fault (0: none is).
    `thorough` opens every file. Without it, file names are compared, and of each building one view is opened: enough
    to see that labels are missing or of another kind, and done in moments.
    """
    if not root.is_dir():
        return [Fault(root, "not a folder")]
    if data_format != TASKONOMY:
        return _check_opened(root, tasks, buildings, test_buildings, batch_size, thorough, data_format, progress)
    try:
        plan = _plan(root, tasks, buildings)
    except DatasetError as error:
        return [Fault(root, reason) for reason in error.faults]
    folders = {domain: domain_folder(root, domain) for domain in plan.domains}
    present = [domain for domain, folder in folders.items() if folder.is_dir()]
    faults = [Fault(folder, "missing domain") for domain, folder in folders.items() if domain not in present]
    views = {building: _views(root, building, present) for building in plan.buildings}
    pictures = {building: by_domain.get(RGB, set()) for building, by_domain in views.items()}
    unknown = [name for name in dict.fromkeys(buildings or ()) if name not in plan.buildings]
    faults += [Fault(root / RGB / name, "missing building") for name in unknown]
    if plan.strict:
        faults += _manifest_faults(plan, pictures)
        faults += [fault for domain in present for fault in _stray(plan, domain)]
    held_out = test_buildings if test_buildings is not None else plan.manifest.buildings.test if plan.manifest else ()
    faults += _too_few(root, pictures, held_out, batch_size)
    done, total = 0, sum(len(set().union(*by_domain.values())) for by_domain in views.values())
    for building, by_domain in views.items():
        if not by_domain[RGB]:
            faults.append(Fault(root / RGB / building, "building without images"))
        for domain in [each for each in by_domain if each != RGB and not (folders[each] / building).is_dir()]:
            faults.append(Fault(folders[domain] / building, f"missing: {len(by_domain[RGB])} pictures without labels"))
            del by_domain[domain]
        for number, (sample, there) in enumerate(_missing(root, by_domain, faults)):
            if thorough or number == 0:
                faults += _sample_faults(root, sample, there)
            done += 1
            if progress is not None:
                progress(done, total)
    return sorted(set(faults), key=lambda fault: (str(fault.path), fault.reason))


def needed_domains(tasks: Sequence[str]) -> list[str]:
    """What must be there to train on `tasks`: the picture, their labels, and depth where one is masked."""
    masked = [DEPTH] if any(TASKS[name].masked for name in tasks) else []
    return list(dict.fromkeys([RGB, *(TASKS[name].domain for name in tasks), *masked]))


def _plan(root: Path, tasks: Sequence[str], buildings: Sequence[str] | None) -> _Plan:
    """Raises DatasetError when there is nothing to look at."""
    manifest, present = read_manifest(root), list_buildings(root)
    if buildings is not None:
        known = tuple(name for name in dict.fromkeys(buildings) if name in present)
        return _Plan(root, tuple(needed_domains(tasks)), known, manifest, strict=False)
    named = list(manifest.domains) if manifest else [each for each in TASKS if domain_folder(root, each).is_dir()]
    domains = dict.fromkeys([RGB, *named, *needed_domains(tasks)])
    return _Plan(root, tuple(each for each in domains if each in TASKS), tuple(present), manifest, strict=True)


def _views(root: Path, building: str, domains: Sequence[str]) -> dict[str, set[Sample]]:
    return {RGB: set(), **{domain: set(list_samples(root, building, domain)) for domain in domains}}


def _manifest_faults(plan: _Plan, pictures: dict[str, set[Sample]]) -> Iterator[Fault]:
    if plan.manifest is None:
        return
    path, manifest = plan.root / MANIFEST, plan.manifest
    train, test = manifest.buildings.train, manifest.buildings.test
    for domain in manifest.domains:
        if domain not in TASKS:
            yield Fault(path, f"unknown domain {domain!r}; known are {', '.join(TASKS)}")
    for name in sorted(set(train) & set(test)):
        yield Fault(path, f"building {name} is listed for training and for testing")
    for name in dict.fromkeys([*train, *test]):
        if name not in pictures:
            yield Fault(path, f"building {name} is listed but absent")
    for name in pictures:
        if name not in train and name not in test:
            yield Fault(plan.root / RGB / name, "building is not listed for training or testing")
    for name, count in manifest.images.items():
        if name in pictures and len(pictures[name]) != count:
            yield Fault(path, f"building {name} should have {count} images and has {len(pictures[name])}")


def _stray(plan: _Plan, domain: str) -> Iterator[Fault]:
    known = {*plan.buildings, *(plan.manifest.images if plan.manifest else ())}
    for folder in sorted(domain_folder(plan.root, domain).iterdir()):
        if not folder.is_dir():
            yield Fault(folder, "stray file beside the building folders")
            continue
        if folder.name not in known:
            yield Fault(folder, f"building has no pictures in {RGB}")
        for entry in sorted(folder.iterdir()):
            name = parse_name(entry.name)
            if name is None or not entry.is_file():
                form = f"point_<P>_view_<V>_domain_{domain}{file_suffix(domain)}"
                yield Fault(entry, f"stray name; files of {domain} are called {form}")
            elif name[2] != domain:
                yield Fault(entry, f"says domain {name[2]} in the folder of {domain}")


def _too_few(root: Path, pictures: dict[str, set[Sample]], held_out: Sequence[str], batch_size: int) -> Iterator[Fault]:
    for building, samples in pictures.items():
        trained_on = sum(point_share(sample) >= VALIDATION_SHARE for sample in samples)
        if building not in held_out and trained_on < batch_size:
            yield Fault(
                root / RGB / building,
                f"{trained_on} pictures to train on (those for validation left out), fewer than a batch of "
                f"{batch_size}: add pictures, or train with a smaller batch",
            )


def _missing(root: Path, views: dict[str, set[Sample]], faults: list[Fault]) -> Iterator[tuple[Sample, list[str]]]:
    """Every view of a building and the domains that have it; where one has not, that is added to `faults`."""
    for sample in sorted(set().union(*views.values())):
        missing = [domain for domain, there in views.items() if sample not in there]
        faults += [Fault(image_path(root, domain, sample), "missing") for domain in missing]
        yield sample, [domain for domain in views if domain not in missing]


def _sample_faults(root: Path, sample: Sample, domains: Sequence[str]) -> Iterator[Fault]:
    sizes: dict[str, tuple[int, int]] = {}
    for domain in domains:
        path, task = image_path(root, domain, sample), TASKS[domain]
        try:
            if task.is_vector:
                read_vector(path, task)
                continue
            pixels = read_image(path, domain)
        except ImageError as error:
            yield Fault(error.fault.path, error.fault.reason)
            continue
        sizes[domain] = (pixels.shape[1], pixels.shape[0])
        if task.is_classes and pixels.size and int(pixels.max()) >= task.channels:
            yield Fault(path, class_fault(task, pixels))
    wanted = sizes.get(RGB)
    for domain, size in sizes.items():
        if wanted is not None and size != wanted:
            where = image_path(root, domain, sample)
            yield Fault(where, f"{size[0]}x{size[1]} pixels, its picture has {wanted[0]}x{wanted[1]}")


def _check_opened(
    root: Path,
    tasks: Sequence[str],
    buildings: Sequence[str] | None,
    test_buildings: Sequence[str] | None,
    batch_size: int,
    thorough: bool,
    data_format: str,
    progress: Progress | None,
) -> list[Fault]:
    """The same of a dataset of another format, as far as it can be told by opening it and reading it."""
    try:
        dataset = opener(data_format)(root, buildings, tasks or (RGB,), _ANY_SIZE, test_buildings=test_buildings)
    except DatasetError as error:
        return [Fault(root, reason) for reason in error.faults]
    numbers: dict[str, list[int]] = {}
    for number, sample in enumerate(dataset.index):
        numbers.setdefault(sample.building, []).append(number)
    pictures = {building: {dataset.index[number] for number in some} for building, some in numbers.items()}
    faults = list(_too_few(root, pictures, sorted(dataset.test_buildings), batch_size))
    chosen = [number for some in numbers.values() for number in (some if thorough else some[:1])]
    for done, number in enumerate(chosen, 1):
        for domain in dataset.domains:
            _, broken = dataset.column(domain, [number])
            faults += [Fault(fault.path, fault.reason) for fault in broken.values()]
        if progress is not None:
            progress(done, len(chosen))
    return sorted(set(faults), key=lambda fault: (str(fault.path), fault.reason))
