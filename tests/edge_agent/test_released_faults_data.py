"""Faults of the research code released for MAS in data and losses: number 2, and most of number 11.

Each check is held against our code, and against a small twin that has the fault, which it must reject.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from edge_agent.datasets import Sample, open_dataset
from edge_agent.datasets.images import resize
from edge_agent.datasets.layout import image_path
from edge_agent.trainer.protocol import Setup
from edge_agent.trainer.samples import Side, Stock
from models.losses import sample_losses
from models.networks import build_network
from models.tasks import TASKS

SIZE = 16
TEXTURE = ("edge_texture",)
TRAINED, TESTED = ("elm", "oak"), ("fir",)
POINTS, VIEWS = 14, 2
ROOMS = (0, 2**26)  # bytes of cache: each sample is read again, or all are kept


def save(root: Path, domain: str, sample: Sample, pixels: np.ndarray) -> Path:
    path = image_path(root, domain, sample)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def numbered(root: Path, buildings: Sequence[str], points: int = POINTS, views: int = VIEWS) -> Path:
    """Pictures that show their point's number, and labels that say it."""
    for building in buildings:
        for point in range(points):
            for view in range(views):
                sample = Sample(building, point, view)
                save(root, "rgb", sample, np.full((SIZE, SIZE, 3), point, np.uint8))
                save(root, "edge_texture", sample, np.full((SIZE, SIZE), 718 + 1070 * point, np.uint16))
    return root


def stock(root: Path, room: int, train: Sequence[str] = TRAINED) -> Stock:
    return Stock(Setup(str(root), tuple(train), TESTED, threads=1, cache_bytes=room))


# --- 2: disjoint pictures, whole clients -----------------------------------------------------------------------------

Sides = Mapping[Side, set[Sample]]


def check_sides_share_nothing(sides: Sides) -> None:
    assert all(sides.values())
    for first, second in (("train", "val"), ("train", "test"), ("val", "test")):
        points = [{(sample.building, sample.point) for sample in sides[side]} for side in (first, second)]  # type: ignore[index]
        assert not points[0] & points[1], f"{first} and {second} show the same places"
    assert {sample.building for sample in sides["test"]} == set(TESTED)
    assert len(sides["test"]) == POINTS * VIEWS, "a building that is tested on is tested on as a whole"


def sides_of(root: Path, train: Sequence[str] = TRAINED) -> Sides:
    chosen = stock(root, 0, train)
    found = {side: chosen.samples(side, TEXTURE, SIZE, 0.0) for side in ("train", "val", "test")}
    return {side: {each.dataset.index[number] for number in each.indices} for side, each in found.items()}  # type: ignore[misc]


def drawn_sides(root: Path) -> Sides:
    """Each side a draw of its own from all pictures, as released."""
    samples = open_dataset(root, None, TEXTURE, SIZE).index
    lot = np.random.default_rng(0)
    counts: dict[Side, int] = {"train": 60, "val": 10, "test": 14}
    return {side: {samples[i] for i in lot.choice(len(samples), n, replace=False)} for side, n in counts.items()}


def views_apart(root: Path) -> Sides:
    """Test buildings apart, but one view of a place is trained on and the other validated."""
    samples = open_dataset(root, None, TEXTURE, SIZE).index
    home = {sample for sample in samples if sample.building not in TESTED}
    val = {sample for sample in home if sample.view == 1}
    return {"train": home - val, "val": val, "test": set(samples) - home}


def test_fault_2_sides_share_no_picture_and_test_buildings_are_whole_clients(tmp_path: Path) -> None:
    root = numbered(tmp_path, (*TRAINED, *TESTED))
    check_sides_share_nothing(sides_of(root))
    for twin in (drawn_sides, views_apart):
        with pytest.raises(AssertionError):
            check_sides_share_nothing(twin(root))
    # A client that is told to train on what others are tested on, too.
    content = {
        "format": 1, "name": "made", "generator": {"command": "none", "seed": 0, "version": "1"}, "size": SIZE,
        "domains": ["rgb", *TEXTURE], "buildings": {"train": list(TRAINED), "test": list(TESTED)},
        "classes": {}, "images": dict.fromkeys((*TRAINED, *TESTED), POINTS * VIEWS),
    }  # fmt: skip
    (root / "mas-dataset.json").write_text(json.dumps(content))
    check_sides_share_nothing(sides_of(root, (*TRAINED, *TESTED)))
    untold = Stock(Setup(str(root), (*TRAINED, *TESTED), (), threads=1, cache_bytes=0))
    for side in ("train", "val"):
        samples = untold.samples(side, TEXTURE, SIZE, 0.0)  # type: ignore[arg-type]
        assert {samples.dataset.index[number].building for number in samples.indices} == set(TRAINED), side


# --- 11: losses remember nothing -------------------------------------------------------------------------------------

LossOf = Callable[[str, Tensor, Tensor, Tensor], Tensor]
KINDS = ("segment_semantic", "depth_zbuffer", "keypoints2d", "class_scene", "class_object", "distance")


def example(task: str, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Output, target and mask of three samples."""
    spec, random = TASKS[task], torch.Generator().manual_seed(seed)
    maps = (8, 8)
    shape = (3, spec.channels) if spec.is_vector else (3, spec.channels, *maps)
    output = torch.randn(shape, generator=random)
    target = torch.rand(shape, generator=random).round()
    if spec.loss == "cross_entropy":
        target = torch.randint(0, spec.channels, (3,) if spec.is_vector else (3, 1, *maps), generator=random)
    return output, target, torch.rand(3, 1, *maps, generator=random).round()


def check_losses_remember_nothing(loss_of: LossOf) -> None:
    for task in KINDS:
        given = example(task, 0)
        kept = [tensor.clone() for tensor in given]
        first = loss_of(task, *given).clone()
        for other in KINDS:
            loss_of(other, *example(other, 1))
        assert torch.equal(loss_of(task, *given), first), task
        assert all(torch.equal(a, b) for a, b in zip(given, kept, strict=True)), task


def our_losses(task: str, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
    return sample_losses(TASKS[task], output, target, mask).values


class LossesInGlobals:
    """What a loss was last time is part of what it is."""

    def __init__(self) -> None:
        self.running: Tensor | None = None

    def __call__(self, task: str, output: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        now = our_losses(task, output, target, mask)
        self.running = now if self.running is None else 0.9 * self.running + 0.1 * now
        return self.running


def test_fault_11_losses_keep_no_state_between_calls() -> None:
    check_losses_remember_nothing(our_losses)
    with pytest.raises(AssertionError):
        check_losses_remember_nothing(LossesInGlobals())


# --- 11: no label stands in for another ------------------------------------------------------------------------------

#: Numbers seen in the pictures, and those that the labels say, of all samples of the root that can be read.
Pairs = Callable[[Path], tuple[list[int], list[int]]]


def check_labels_belong_to_their_pictures(pairs: Pairs, root: Path, broken: int) -> None:
    pictures, labels = pairs(root)
    assert pictures == labels
    assert pictures == [point for point in range(POINTS) if point != broken]


def read_by(room: int, loads: int) -> Pairs:
    """From the last of so many loads: what is broken is found in the first, and known in those after it."""

    def pairs(root: Path) -> tuple[list[int], list[int]]:
        samples = stock(root, room).samples("test", TEXTURE, SIZE, 0.5)
        batch = [samples.load(range(len(samples))) for _ in range(loads)][-1]
        assert samples.skipped_total == 1
        pictures, labels = batch.rgb[:, 0, 0, 0] * 255, batch.targets["edge_texture"][:, 0, 0, 0]
        return pictures.round().int().tolist(), labels.round().int().tolist()

    return pairs


def the_last_label_again(root: Path) -> tuple[list[int], list[int]]:
    pictures, labels = [], []
    for sample in sorted(open_dataset(root, TESTED, TEXTURE, SIZE).index, key=lambda sample: sample.point):
        pictures.append(int(np.asarray(Image.open(image_path(root, "rgb", sample)))[0, 0, 0]))
        try:
            value = int(np.asarray(Image.open(image_path(root, "edge_texture", sample)))[0, 0])
            labels.append((value - 718) // 1070)
        except OSError:
            labels.append(labels[-1])
    return pictures, labels


@pytest.mark.parametrize("broken", [3, POINTS - 1])
def test_fault_11_a_read_error_leaves_the_sample_out_and_borrows_no_label(tmp_path: Path, broken: int) -> None:
    root = numbered(tmp_path, TESTED, views=1)
    image_path(root, "edge_texture", Sample(TESTED[0], broken, 0)).write_bytes(b"\x89PNG torn")
    for room in ROOMS:
        for loads in (1, 2):
            check_labels_belong_to_their_pictures(read_by(room, loads), root, broken)
    with pytest.raises(AssertionError):
        check_labels_belong_to_their_pictures(the_last_label_again, root, broken)


# --- 11: the list of tasks stays -------------------------------------------------------------------------------------


def check_tasks_stay(tasks: Callable[[], Sequence[str]], use: Callable[[], object], expected: Sequence[str]) -> None:
    for _ in range(3):
        assert list(tasks()) == list(expected)
        use()


class GrowingDataset:
    """The picture itself is put on the list of what to read, each time it is read."""

    def __init__(self) -> None:
        self.tasks = ["edge_texture"]

    def load(self) -> None:
        self.tasks.append("rgb")


def test_fault_11_the_list_of_tasks_does_not_grow_with_loads(tmp_path: Path) -> None:
    root = numbered(tmp_path, TESTED, points=3)
    for room in ROOMS:
        samples = stock(root, room).samples("test", TEXTURE, SIZE, 0.0)
        check_tasks_stay(lambda s=samples: [t.name for t in s.dataset.tasks], lambda s=samples: s.load([0, 1]), TEXTURE)  # type: ignore[misc]
        check_tasks_stay(lambda s=samples: list(s.load([0]).targets), lambda: None, TEXTURE)  # type: ignore[misc]
        check_tasks_stay(lambda s=samples: s.dataset.domains, lambda s=samples: s.load([0]), ("rgb", *TEXTURE))  # type: ignore[misc]
    pair = ("normal", "edge_texture")
    network, picture = build_network("pi", pair, 32, seed=0), torch.rand(1, 3, 32, 32)
    check_tasks_stay(lambda: network.tasks, lambda: network(picture), pair)
    check_tasks_stay(lambda: list(network(picture)), lambda: None, pair)
    twin = GrowingDataset()
    with pytest.raises(AssertionError):
        check_tasks_stay(lambda: twin.tasks, twin.load, TEXTURE)


# --- 11: class ids and depths are not mixed --------------------------------------------------------------------------

Resize = Callable[[np.ndarray, str, int], np.ndarray]


def check_values_are_not_mixed(resized: Resize) -> None:
    lot = np.random.default_rng(0)
    stored = {
        "segment_semantic": lot.choice(np.array([0, 3, 17], np.uint8), (24, 24)),
        "depth_zbuffer": lot.choice(np.array([700, 4000, 65535], np.uint16), (24, 24)),
    }
    for domain, pixels in stored.items():
        for size in (12, 10, 40):
            found = resized(pixels, domain, size)
            assert found.shape == (size, size)
            assert found.dtype == pixels.dtype
            assert set(np.unique(found)) == set(np.unique(pixels)), f"{domain} at {size}"


def resize_of_a_dataset(folder: Path) -> Resize:
    """The whole way from a file to a target, and back to the file's units."""

    def resized(pixels: np.ndarray, domain: str, size: int) -> np.ndarray:
        sample = Sample("fir", 0, 0)
        save(folder, "rgb", sample, np.zeros((*pixels.shape, 3), np.uint8))
        save(folder, domain, sample, pixels)
        target = stock(folder, 0).samples("test", (domain,), size, 0.0).load([0]).targets[domain][0, 0].numpy()
        values = target if TASKS[domain].is_classes else TASKS[domain].denormalise(target[None])[0]
        return np.rint(values).astype(pixels.dtype)

    return resized


def bilinear(pixels: np.ndarray, domain: str, size: int) -> np.ndarray:
    mixed = Image.fromarray(pixels.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(mixed)).astype(pixels.dtype)


def test_fault_11_class_ids_and_depth_are_never_mixed_on_resize(tmp_path: Path) -> None:
    check_values_are_not_mixed(resize)
    check_values_are_not_mixed(resize_of_a_dataset(tmp_path))
    with pytest.raises(AssertionError):
        check_values_are_not_mixed(bilinear)
