"""A device's samples: the same numbers however they are kept, decoded once, on whatever device."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from edge_agent.datasets import DatasetError, Sample, open_dataset
from edge_agent.datasets.layout import image_path
from edge_agent.trainer.columns import ColumnStore
from edge_agent.trainer.protocol import Setup
from edge_agent.trainer.samples import Stock, TooManyFaultsError
from models.losses import Batch
from models.tasks import TASKS

SIZE = 16
ALL = tuple(TASKS)
SETUP_BYTES = 2**26


def label(domain: str, rng: np.random.Generator, size: int = SIZE) -> np.ndarray | list[float] | int:
    task = TASKS[domain]
    if task.is_vector:
        if task.loss == "cross_entropy":
            return int(rng.integers(0, task.channels))
        numbers = rng.integers(0, 2, task.channels) if task.loss == "bce" else rng.random(task.channels) * 9
        return [float(number) for number in numbers]
    if task.is_classes:
        return rng.integers(0, task.channels, (size, size), dtype=np.uint8)
    if task.encoding == "rgb8":
        return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    return rng.integers(0, 65536, (size, size)).astype(np.uint16)


def save(root: Path, domain: str, sample: Sample, rng: np.random.Generator, size: int = SIZE) -> None:
    path, made = image_path(root, domain, sample), label(domain, rng, size)
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(made, np.ndarray):
        Image.fromarray(made).save(path)
    else:
        path.write_text(json.dumps(made))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for building, points in (("elm", 9), ("oak", 4), ("fir", 3)):
        for point in range(points):
            for domain in ALL:
                save(folder, domain, Sample(building, point, 0), rng)
    return folder


def setup(root: Path, cache_bytes: int = SETUP_BYTES) -> Setup:
    return Setup(str(root), ("elm", "oak"), ("fir",), threads=1, cache_bytes=cache_bytes)


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32) if tensor.dtype == torch.float32 else tensor


def same(first: Batch, second: Batch) -> bool:
    pairs = [(first.rgb, second.rgb), *((first.targets[name], second.targets[name]) for name in first.targets)]
    if first.mask is not None and second.mask is not None:
        pairs.append((first.mask, second.mask))
    return (
        list(first.targets) == list(second.targets)
        and (first.mask is None) == (second.mask is None)
        and all(a.dtype == b.dtype and torch.equal(bits(a), bits(b)) for a, b in pairs)
    )


@pytest.mark.parametrize("tasks", [ALL, ("normal",), ("rgb", "saliency"), ("class_scene",)], ids=lambda t: t[0])
def test_what_is_kept_has_the_bits_of_what_is_read_each_time(root: Path, tasks: tuple[str, ...]) -> None:
    kept, read = (Stock(setup(root, room)).samples("train", tasks, SIZE, 0.0) for room in (SETUP_BYTES, 0))
    assert kept.gathered is not None
    assert read.gathered is None
    assert len(kept) == len(read) > 4
    for indices in ([3, 0, 4], [1], list(range(len(kept)))):
        assert same(kept.load(indices), read.load(indices))


def test_targets_have_the_shapes_and_kinds_that_the_losses_take(root: Path) -> None:
    batch = Stock(setup(root)).samples("train", ALL, SIZE, 0.0).load([0, 1])
    assert batch.mask is not None
    assert (batch.rgb.shape, batch.mask.shape) == ((2, 3, SIZE, SIZE), (2, 1, SIZE, SIZE))
    for name, target in batch.targets.items():
        task = TASKS[name]
        classes = task.loss == "cross_entropy"
        maps = (2, 1 if classes else task.channels, SIZE, SIZE)
        assert target.shape == ((2,) if classes and task.is_vector else (2, task.channels) if task.is_vector else maps)
        assert target.dtype == (torch.int64 if classes else torch.float32)


def test_a_batch_may_be_changed_without_changing_the_next(root: Path) -> None:
    samples = Stock(setup(root)).samples("train", ALL, SIZE, 0.0)
    first = samples.load([0, 1])
    before = first.rgb.clone()
    for tensor in (first.rgb, *first.targets.values()):
        tensor.zero_()
    assert torch.equal(samples.load([0, 1]).rgb, before)
    assert samples.load([0, 1]).targets["class_object"].any()


def test_sides_share_no_picture_and_cover_the_buildings(root: Path) -> None:
    stock = Stock(setup(root))
    found = {side: stock.samples(side, ("normal",), SIZE, 0.0) for side in ("train", "val", "test")}
    taken = {side: {each.dataset.index[i] for i in each.indices} for side, each in found.items()}
    assert {sample.building for sample in taken["test"]} == {"fir"}
    assert not taken["train"] & taken["val"]
    assert len(taken["val"]) >= 1
    assert len(taken["train"] | taken["val"]) == 13
    split = open_dataset(root, ["elm", "oak"], ["normal"], SIZE, test_buildings=["fir"]).split()
    assert found["val"].indices == split.val.tolist()
    assert same(found["val"].load([0]), Stock(setup(root, 0)).samples("val", ("normal",), SIZE, 0.0).load([0]))


def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Domains that are read from files from now on."""
    from edge_agent.datasets import taskonomy

    read, seen = taskonomy.read_label, []

    def counted(root: Path, sample: Sample, domain: str) -> object:
        seen.append(domain)
        return read(root, sample, domain)

    monkeypatch.setattr(taskonomy, "read_label", counted)
    return seen


def test_groups_of_tasks_share_what_is_decoded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen, stock = decoded(monkeypatch), Stock(setup(root))
    count = len(stock.samples("train", ("depth_zbuffer", "edge_texture"), SIZE, 0.0))
    assert len(seen) == 3 * count
    stock.samples("train", ("depth_zbuffer",), SIZE, 0.0)
    stock.samples("train", ("edge_texture",), SIZE, 0.0).load([0])
    assert len(seen) == 3 * count
    stock.samples("train", ("normal", "edge_texture"), SIZE, 0.0)
    assert seen[3 * count :] == ["normal"] * count


def test_clients_that_share_a_store_share_their_test_pictures(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ColumnStore(SETUP_BYTES)
    one = Stock(msgspec.structs.replace(setup(root), train_buildings=("elm",)), store=store)
    other = Stock(msgspec.structs.replace(setup(root), train_buildings=("oak",)), store=store)
    first = one.samples("test", ("normal",), SIZE, 0.0).load([0, 1, 2])
    seen = decoded(monkeypatch)
    assert same(other.samples("test", ("normal",), SIZE, 0.0).load([0, 1, 2]), first)
    assert seen == []
    other.samples("train", ("normal",), SIZE, 0.0)
    assert set(seen) == {"rgb", "normal", "depth_zbuffer"}


def test_what_was_not_used_for_longest_makes_room(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    test_bytes = 3 * SIZE**2 * (3 + 2)  # three pictures, and one sixteen-bit label of each
    store = ColumnStore(test_bytes + 3 * SIZE**2 * 2)
    stock = Stock(setup(root), store=store)
    stock.samples("test", ("edge_texture",), SIZE, 0.0)
    assert store.used_bytes == test_bytes
    stock.samples("test", ("keypoints2d",), SIZE, 0.0)
    seen = decoded(monkeypatch)
    stock.samples("test", ("edge_texture",), SIZE, 0.0)
    assert seen == [], "both fit"
    stock.samples("test", ("saliency",), SIZE, 0.0)
    assert store.used_bytes <= store.budget_bytes
    stock.samples("test", ("edge_texture",), SIZE, 0.0)
    assert set(seen) == {"saliency"}
    stock.samples("test", ("keypoints2d",), SIZE, 0.0)
    assert set(seen) == {"saliency", "keypoints2d"}


def test_broken_samples_are_left_out_of_the_groups_that_need_them(root: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for point in range(4):
        for domain in ("rgb", "edge_texture", "class_object"):
            save(tmp_path, domain, Sample("fir", point, 0), rng)
    victims = [image_path(tmp_path, "class_object", Sample("fir", point, 0)) for point in (1, 3)]
    victims[0].write_text("[1, 0")
    victims[1].write_text("[1, 0]")
    for room in (SETUP_BYTES, 0):
        stock = Stock(setup(tmp_path, room))
        whole = stock.samples("test", ("edge_texture",), SIZE, 0.0)
        assert (len(whole), whole.usable, whole.skipped) == (4, 4, ())
        samples = stock.samples("test", ("class_object", "edge_texture"), SIZE, 0.5)
        loaded = samples.load(range(len(samples)))
        assert len(loaded) == samples.usable == 2
        assert samples.skipped[0].startswith("class_object/fir/point_1_view_0_domain_class_object.json: not a number")
        assert samples.skipped[1].endswith("point_3_view_0_domain_class_object.json: 2 numbers, class_object has 18")
        assert torch.equal(loaded.targets["edge_texture"], whole.load([0, 2]).targets["edge_texture"])
        with pytest.raises(TooManyFaultsError, match="2 of 4 samples cannot be used"):
            stock.samples("test", ("class_object", "edge_texture"), SIZE, 0.4).check_faults()


def test_batches_are_made_where_the_columns_lie(root: Path) -> None:
    """On the meta device nothing can be read back: a batch that needs the host would fail."""
    samples = Stock(setup(root), torch.device("meta")).samples("train", ALL, SIZE, 0.0)
    batch = samples.load([0, 1, 2])
    tensors = [batch.rgb, *batch.targets.values(), *([] if batch.mask is None else [batch.mask])]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_a_side_without_buildings_or_a_format_that_nobody_reads_is_named(root: Path) -> None:
    with pytest.raises(DatasetError, match="no train buildings"):
        Stock(msgspec.structs.replace(setup(root), train_buildings=())).samples("val", ("normal",), SIZE, 0.0)
    with pytest.raises(DatasetError, match="no data format 'hdf5'; known are taskonomy"):
        Stock(msgspec.structs.replace(setup(root), data_format="hdf5")).samples("test", ("normal",), SIZE, 0.0)
