"""Whole datasets from a tiny catalogue: determinism, resumption, manifest, and a clean bill of the checker."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from tiny_furniture import MODELS, write_set

from edge_agent.datasets import check_dataset, open_dataset, read_manifest
from edge_agent.datasets.images import read_image
from edge_agent.datasets.layout import MANIFEST
from models.tasks import TASKS
from tools.scenes import dataset as dataset_module
from tools.scenes import job as job_module
from tools.scenes import library as library_module
from tools.scenes.catalogue import Model
from tools.scenes.dataset import total_views, write_scenes
from tools.scenes.encode import DOMAINS, PRESENT_SHARE
from tools.scenes.files import FolderError, point_numbers
from tools.scenes.job import Plan, ScenesError
from tools.scenes.library import Library, open_library
from tools.scenes.meshes import Mesh, load_model
from tools.scenes.styles import ROOM_KINDS

PLAN = Plan(buildings=1, test_buildings=1, points=4, test_points=2, views=2, size=16, seed=3)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("furniture"))


@pytest.fixture(scope="module")
def dataset(catalogue: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes") / "out"
    write_scenes(PLAN, catalogue, root)
    return root


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def test_the_manifest_says_what_is_there(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    assert manifest is not None
    assert manifest.buildings.train == ["alder"]
    assert manifest.buildings.test == ["birch"]
    assert manifest.images == {"alder": 8, "birch": 4}
    assert sum(manifest.images.values()) == total_views(PLAN)
    assert manifest.generator.seed == 3
    assert "--seed 3" in manifest.generator.command
    assert manifest.classes[1] == "wall"
    assert manifest.size == 16


def test_the_manifest_names_the_numbers_of_whole_pictures(dataset: Path) -> None:
    found = json.loads((dataset / MANIFEST).read_bytes())
    assert found["domains"] == list(DOMAINS)
    assert found["label_names"]["class_scene"] == {str(number): name for number, name in enumerate(ROOM_KINDS)}
    assert found["label_names"]["class_object"]["9"] == "table"
    kinds = {json.loads(path.read_bytes()) for path in (dataset / "class_scene").rglob("*.json")}
    assert kinds <= set(range(len(ROOM_KINDS)))


def test_the_checker_finds_nothing(dataset: Path) -> None:
    assert check_dataset(dataset, [task for task in TASKS if TASKS[task].domain in DOMAINS]) == []


def test_numbers_agree_with_the_pictures_beside_them(dataset: Path) -> None:
    for path in (dataset / "depth_zbuffer").rglob("*.png"):
        name = path.name.replace("depth_zbuffer.png", "{}.json")
        depth = read_image(path, "depth_zbuffer")
        distance = dataset / "distance" / path.parent.name / name.format("distance")
        assert json.loads(distance.read_bytes()) == pytest.approx(depth[depth < 8192].mean() / 512, abs=1e-4)
        classes = read_image(
            dataset / "segment_semantic" / path.parent.name / path.name.replace("depth_zbuffer", "segment_semantic"),
            "segment_semantic",
        )
        present = dataset / "class_object" / path.parent.name / name.format("class_object")
        shares = [np.mean(classes == number) for number in range(18)]
        assert json.loads(present.read_bytes()) == [int(share >= PRESENT_SHARE) for share in shares]


def test_fewer_tasks_are_the_same_files_and_fewer(dataset: Path, catalogue: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, tasks="sdnkt")
    assert plan.command() == PLAN.command() + " --tasks sdnkt"
    write_scenes(plan, catalogue, tmp_path / "few")
    manifest = read_manifest(tmp_path / "few")
    assert manifest is not None
    assert manifest.domains == [
        "rgb", "depth_zbuffer", "normal", "segment_semantic", "keypoints2d", "edge_texture"
    ]  # fmt: skip
    few, everything = digests(tmp_path / "few"), digests(dataset)
    labels = {name: digest for name, digest in few.items() if name.endswith(".png")}
    assert len(labels) == 6 * total_views(PLAN)
    assert labels.items() <= everything.items()
    assert check_dataset(tmp_path / "few") == []


def test_a_dataset_of_the_first_release_gets_its_missing_labels(dataset: Path, catalogue: Path, tmp_path: Path) -> None:
    root = tmp_path / "older"
    shutil.copytree(dataset, root)
    for domain in DOMAINS[6:]:
        shutil.rmtree(root / domain)
    summary = write_scenes(PLAN, catalogue, root)
    assert (summary.written, summary.kept) == (total_views(PLAN), 0)
    assert digests(root) == digests(dataset)


def test_tasks_without_labels_are_refused_with_the_other_faults() -> None:
    faults = Plan(buildings=0, tasks="sv").faults()
    assert [fault.split()[0] for fault in faults] == ["--buildings", "--tasks:"]
    assert "saliency" in faults[1]
    assert "unknown task" in Plan(tasks="nothing").faults()[0]


def test_models_are_read_once_and_forgotten_for_others(catalogue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def counted(model: Model, archive: object) -> Mesh:
        read.append(model.key)
        return load_model(model)

    monkeypatch.setattr(library_module, "load_model", counted)
    library = Library(catalogue)
    first, second = library.models[:2]
    assert library.load(first) is library.load(first)
    small = Library(catalogue, kept_bytes=library.load(first).nbytes)
    for model in (first, second, first):
        small.load(model)
    assert read == [first.key, first.key, second.key, first.key]


def test_a_catalogue_that_changes_is_read_again(tmp_path: Path) -> None:
    folder = write_set(tmp_path)
    before = open_library(folder)
    assert open_library(folder) is before
    write_set(folder, models=MODELS[:3])
    assert len(open_library(folder).models) == 3


def test_training_and_validation_both_have_images(dataset: Path) -> None:
    split = open_dataset(dataset, None, ["normal"], 16).split()
    assert len(split.train) == 6
    assert len(split.val) == 2
    assert len(split.test) == 4


def test_attributions_name_every_model_creator_and_licence(dataset: Path) -> None:
    text = (dataset / "ATTRIBUTIONS.md").read_text()
    for number in range(1, len(MODELS) + 1):
        assert f"| m{number} |" in text
        assert f"| Maker {number} | CC0 1.0 | Tiny |" in text


def test_other_workers_same_bytes(dataset: Path, catalogue: Path, tmp_path: Path) -> None:
    write_scenes(PLAN, catalogue, tmp_path / "again", workers=2)
    assert digests(tmp_path / "again") == digests(dataset)


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_every_room_is_taken_once_and_workers_keep_to_their_building(workers: int) -> None:
    plan = replace(PLAN, buildings=3, points=12)
    jobs = dataset_module.rooms_of(plan, Path("sets"), Path("out"))
    shelves = dataset_module.Shelves(jobs)
    taken: dict[int, list[int]] = {worker: [] for worker in range(workers)}
    rooms = []
    while job := shelves.take(len(rooms) % workers):
        taken[len(rooms) % workers].append(job.building)
        rooms.append((job.building, job.room))
    assert sorted(rooms) == [(job.building, job.room) for job in jobs]
    moves = sum(first != second for visited in taken.values() for first, second in pairwise(visited))
    assert moves <= 4 + workers


def test_another_seed_other_pictures(dataset: Path, catalogue: Path, tmp_path: Path) -> None:
    plan = Plan(buildings=1, test_buildings=0, points=1, test_points=1, views=1, size=16, seed=4)
    write_scenes(plan, catalogue, tmp_path / "other")
    pictures = {digest for name, digest in digests(tmp_path / "other").items() if name.startswith("rgb/")}
    assert pictures
    assert pictures.isdisjoint(digests(dataset).values())


def test_an_interrupted_run_is_completed(
    dataset: Path, catalogue: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "broken-off"
    write = job_module.write_atomic
    written = 0

    def interrupted(path: Path, data: bytes) -> None:
        nonlocal written
        written += 1
        if written == 40:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(job_module, "write_atomic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_scenes(PLAN, catalogue, root)
    assert read_manifest(root) is None
    (root / "rgb" / "alder" / ".writing-1-left.png").write_bytes(b"half")
    monkeypatch.undo()
    summary = write_scenes(PLAN, catalogue, root)
    assert summary.kept == 3
    assert summary.written == total_views(PLAN) - 3
    assert digests(root) == digests(dataset)


def test_a_finished_dataset_is_kept_as_it_is(dataset: Path, catalogue: Path) -> None:
    before = digests(dataset)
    summary = write_scenes(PLAN, catalogue, dataset)
    assert (summary.written, summary.kept) == (0, total_views(PLAN))
    assert digests(dataset) == before


def test_foreign_folders_are_left_alone(dataset: Path, catalogue: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(FolderError, match="not empty"):
        write_scenes(PLAN, catalogue, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    with pytest.raises(FolderError, match="another dataset"):
        write_scenes(Plan(seed=99), catalogue, dataset)
    assert read_manifest(dataset) is not None


def test_all_bad_numbers_are_named_at_once() -> None:
    faults = Plan(buildings=0, points=0, views=-1, size=8).faults()
    assert [fault.split()[0] for fault in faults] == ["--buildings", "--points", "--views", "--size"]


def test_too_little_furniture_is_a_clear_error(tmp_path: Path) -> None:
    folder = write_set(tmp_path / "one", "One", models=(("Vase", "Miscellaneous", 22, 22, 30, 0),))
    with pytest.raises(ScenesError, match="too little furniture"):
        write_scenes(Plan(1, 0, 1, 1, 1, 16, 0), folder, tmp_path / "out")


def test_unusable_models_are_named_and_left_out(tmp_path: Path, catalogue: Path) -> None:
    import zipfile

    folder = tmp_path / "damaged"
    folder.mkdir()
    with zipfile.ZipFile(catalogue / "Tiny.sh3f") as source, zipfile.ZipFile(folder / "Tiny.sh3f", "w") as target:
        for name in source.namelist():
            if name != "tiny/m21/box.obj":
                target.writestr(name, source.read(name))
    summary = write_scenes(Plan(1, 0, 2, 1, 1, 16, 3), folder, tmp_path / "out")
    assert any("Tiny#m21" in note for note in summary.notes)
    assert check_dataset(tmp_path / "out") == []


@pytest.mark.parametrize("count", [1, 2, 3, 7, 18, 40])
def test_point_numbers_give_every_building_its_validation_share(count: int) -> None:
    from edge_agent.datasets.layout import Sample
    from edge_agent.datasets.taskonomy import VALIDATION_SHARE, point_share

    numbers = point_numbers("oak", count)
    assert len(set(numbers)) == count
    assert numbers == sorted(numbers)
    held = sum(point_share(Sample("oak", number, 0)) < VALIDATION_SHARE for number in numbers)
    assert held == (max(1, round(0.15 * count)) if count > 1 else held)
    assert held < count or count == 1
