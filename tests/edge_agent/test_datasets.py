"""The loader on both layouts, and the checker on every fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from edge_agent.datasets import DatasetError, Sample, check_dataset, open_dataset, read_manifest
from edge_agent.datasets.images import ImageError, read_image, resize
from edge_agent.datasets.layout import image_path
from edge_agent.datasets.taskonomy import point_share
from models.tasks import TASKS

ALL = ("segment_semantic", "depth_zbuffer", "normal", "keypoints2d", "edge_texture")
DOMAINS = ("rgb", *ALL)


def stored(domain: str, size: int, rng: np.random.Generator) -> np.ndarray:
    if domain in ("rgb", "normal"):
        return rng.integers(0, 256, (size, size, 3), dtype=np.uint8)
    if domain == "segment_semantic":
        return rng.integers(0, 18, (size, size), dtype=np.uint8)
    return rng.integers(0, 12000, (size, size)).astype(np.uint16)


def make(
    root: Path, *, train: tuple[str, ...] = ("oak", "elm"), test: tuple[str, ...] = ("fir",), points: int = 6,
    views: int = 2, size: int = 16, manifest: bool = True,
) -> Path:  # fmt: skip
    rng = np.random.default_rng(0)
    for building in (*train, *test):
        for point in range(points):
            for view in range(views):
                for domain in DOMAINS:
                    path = image_path(root, domain, Sample(building, point, view))
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(stored(domain, size, rng)).save(path)
    if manifest:
        write_manifest(root, train, test, points * views, size)
    return root


def write_manifest(root: Path, train: tuple[str, ...], test: tuple[str, ...], images: int, size: int = 16) -> None:
    content = {
        "format": 1, "name": "made", "generator": {"command": "none", "seed": 0, "version": "1"}, "size": size,
        "domains": list(DOMAINS), "buildings": {"train": list(train), "test": list(test)},
        "classes": {"0": "ignored", "1": "wall"}, "images": dict.fromkeys((*train, *test), images),
    }  # fmt: skip
    (root / "mas-dataset.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("dataset"))


def raw(root: Path, domain: str, sample: Sample) -> np.ndarray:
    return np.asarray(Image.open(image_path(root, domain, sample)))


def test_a_batch_holds_normalised_targets_in_order(root: Path) -> None:
    data = open_dataset(root, ["oak"], ALL, 16)
    batch = data.load([3, 1])
    assert batch.indices.tolist() == [3, 1]
    sample = data.index[3]
    np.testing.assert_allclose(batch.rgb[0], np.moveaxis(raw(root, "rgb", sample), -1, 0) / 255, rtol=1e-6)
    np.testing.assert_allclose(
        batch.targets["normal"][0], 2 * (np.moveaxis(raw(root, "normal", sample), -1, 0) / 255 - 0.5), atol=1e-6
    )
    depth = raw(root, "depth_zbuffer", sample).astype(np.float64)
    np.testing.assert_allclose(batch.targets["depth_zbuffer"][0, 0], (depth - 1500) / 1000, rtol=1e-5)
    np.testing.assert_array_equal(batch.targets["segment_semantic"][0], raw(root, "segment_semantic", sample))
    assert batch.mask is not None
    np.testing.assert_array_equal(batch.mask[0, 0], depth < 8192)
    assert 0 < batch.mask.mean() < 1
    assert batch.rgb.dtype == batch.mask.dtype == batch.targets["normal"].dtype == np.float32
    assert batch.targets["segment_semantic"].dtype == np.int64
    shapes = {name: target.shape for name, target in batch.targets.items()}
    assert shapes == {
        "segment_semantic": (2, 16, 16), "depth_zbuffer": (2, 1, 16, 16), "normal": (2, 3, 16, 16),
        "keypoints2d": (2, 1, 16, 16), "edge_texture": (2, 1, 16, 16),
    }  # fmt: skip


def test_depth_is_read_for_the_mask_only_where_a_task_needs_it(root: Path) -> None:
    assert open_dataset(root, None, ["normal"], 16).domains == ("rgb", "normal", "depth_zbuffer")
    plain = open_dataset(root, None, ["edge_texture"], 16)
    assert plain.domains == ("rgb", "edge_texture")
    assert plain.load([0]).mask is None


def test_two_channel_labels_stored_as_rgb_lose_the_third(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for domain in ("rgb", "orientation"):
        path = image_path(tmp_path, domain, Sample("oak", 0, 0))
        path.parent.mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)
    batch = open_dataset(tmp_path, None, ["orientation"], 16).load([0])
    assert batch.targets["orientation"].shape == (1, 2, 16, 16)


def test_a_real_download_needs_no_manifest(tmp_path: Path) -> None:
    """Taskonomy's own files: 512 x 512, sixteen-bit greys, palette-free classes, buildings told by folders."""
    make(tmp_path, train=("allensville",), test=("uvalda",), points=2, views=1, size=512, manifest=False)
    data = open_dataset(tmp_path, None, ALL, 64, test_buildings=["uvalda"])
    assert {sample.building for sample in data.index} == {"allensville", "uvalda"}
    batch = data.load(range(len(data)))
    assert batch.rgb.shape == (4, 3, 64, 64)
    split = data.split()
    assert {data.index[i].building for i in split.test} == {"uvalda"}
    assert check_dataset(tmp_path) == []


def test_a_downloads_own_spelling_of_class_maps_is_read(tmp_path: Path) -> None:
    make(tmp_path, points=2, manifest=False)
    for path in (tmp_path / "segment_semantic").rglob("*.png"):
        path.rename(path.with_name(path.name.replace("segment_semantic", "segmentsemantic")))
    dataset = open_dataset(tmp_path, None, ("segment_semantic",), 16)
    assert len(dataset.load(range(len(dataset)))) == len(dataset) > 0
    assert dataset.faults == ()
    assert check_dataset(tmp_path) == []


@pytest.mark.parametrize("size", [5, 16, 37, 128])
def test_class_ids_and_depth_never_get_values_in_between(size: int) -> None:
    rng = np.random.default_rng(size)
    ids = rng.choice(np.array([0, 200], np.uint8), (61, 61))
    assert set(np.unique(resize(ids, "segment_semantic", size))) == {0, 200}
    depth = np.where(rng.random((61, 61)) < 0.5, 512, 65535).astype(np.uint16)
    assert set(np.unique(resize(depth, "depth_zbuffer", size))) == {512, 65535}


def test_nearest_takes_the_middle_of_each_cell() -> None:
    ids = np.arange(36, dtype=np.uint8).reshape(6, 6)
    np.testing.assert_array_equal(resize(ids, "segment_semantic", 2), ids[[1, 4]][:, [1, 4]])
    np.testing.assert_array_equal(resize(ids, "segment_semantic", 12), np.kron(ids, np.ones((2, 2), np.uint8)))


def test_other_labels_are_area_means() -> None:
    heat = np.array([[0, 100], [40000, 60000]], np.uint16).repeat(8, 0).repeat(8, 1)
    np.testing.assert_array_equal(resize(heat, "edge_texture", 8)[::4, ::4], [[0, 100], [40000, 60000]])
    assert resize(heat, "edge_texture", 1).item() == 25025
    rgb = np.zeros((4, 4, 3), np.uint8)
    rgb[::2] = 200
    assert set(np.unique(resize(rgb, "rgb", 2))) == {100}
    enlarged = resize(np.array([[0, 1000]], np.uint16).repeat(2, 0), "edge_texture", 8)
    assert enlarged.dtype == np.uint16
    assert len(np.unique(enlarged)) > 2


def test_caching_changes_nothing_but_reading(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached, uncached = (open_dataset(root, None, ALL, 16, cache_bytes=budget) for budget in (2**28, 10))
    assert cached.keeps_in_memory
    assert not uncached.keeps_in_memory
    cached.preload()
    for data in (cached, uncached):
        data.load(range(4))
    first, second = cached.load([2, 5]), uncached.load([2, 5])
    for name in ALL:
        np.testing.assert_array_equal(first.targets[name], second.targets[name])

    def refuse(path: Path, domain: str) -> None:
        raise AssertionError(f"{path} decoded twice")

    monkeypatch.setattr("edge_agent.datasets.taskonomy.read_image", refuse)
    cached.load(range(len(cached)))
    with pytest.raises(AssertionError, match="decoded twice"):
        uncached.load([0])


def test_batches_cover_everything_once_and_repeat_by_generator(root: Path) -> None:
    data = open_dataset(root, None, ["edge_texture"], 16)
    indices = np.arange(len(data))
    orders = [
        [batch.indices.tolist() for batch in data.batches(indices, 5, np.random.default_rng(seed))]
        for seed in (7, 7, 8)
    ]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(number for batch in orders[0] for number in batch) == indices.tolist()
    assert [len(batch) for batch in orders[0]] == [5] * 7 + [1]
    assert next(iter(data.batches(indices, 4))).indices.tolist() == [0, 1, 2, 3]


def test_test_buildings_are_never_trained_or_validated_on(root: Path) -> None:
    data = open_dataset(root, None, ["edge_texture"], 16)
    split = data.split()
    assert {data.index[i].building for i in split.test} == {"fir"}
    assert "fir" not in {data.index[i].building for i in (*split.train, *split.val)}
    other = open_dataset(root, None, ["edge_texture"], 16, test_buildings=["oak"]).split()
    assert {data.index[i].building for i in other.test} == {"oak"}


def unread(sample: Sample, domain: str) -> np.ndarray:
    raise AssertionError(f"{domain} of {sample} is read")


@given(
    building=st.text("abcdefghij", min_size=1, max_size=6),
    points=st.lists(st.integers(0, 10_000), min_size=1, max_size=30, unique=True),
    views=st.integers(1, 4),
)
def test_views_of_a_point_stay_together(building: str, points: list[int], views: int) -> None:
    from edge_agent.datasets import BuildingsDataset

    index = tuple(Sample(building, point, view) for point in points for view in range(views))
    data = BuildingsDataset(Path(), (TASKS["rgb"],), 16, index, frozenset(), unread)
    split = data.split()
    sides = [{index[i].point for i in side} for side in (split.train, split.val, split.test)]
    assert not sides[0] & sides[1]
    assert sides[0] | sides[1] == set(points)
    assert sorted([*split.train, *split.val, *split.test]) == list(range(len(index)))
    reordered = BuildingsDataset(Path(), (TASKS["rgb"],), 16, index[::-1], frozenset(), unread)
    assert {index[::-1][i].point for i in reordered.split().val} == sides[1]


def test_validation_share_is_about_15_percent() -> None:
    shares = [point_share(Sample("oak", point, 0)) for point in range(4000)]
    assert np.mean(np.array(shares) < 0.15) == pytest.approx(0.15, abs=0.02)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:80])


def flip_bits(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[50:60] = bytes(10)
    path.write_bytes(bytes(data))


def as_text(path: Path) -> None:
    path.write_text("hello")


def as_rgba(path: Path) -> None:
    Image.new("RGBA", (16, 16)).save(path)


def class_99(path: Path) -> None:
    Image.fromarray(np.full((16, 16), 99, np.uint8)).save(path)


BROKEN: list[tuple[str, Callable[[Path], None], str]] = [
    ("normal", Path.unlink, "missing"),
    ("rgb", Path.unlink, "missing"),
    ("depth_zbuffer", truncate, "unreadable"),
    ("normal", flip_bits, "unreadable"),
    ("rgb", as_text, "not an image"),
    ("normal", as_rgba, "mode RGBA"),
    ("edge_texture", class_99, "mode L"),
    ("segment_semantic", class_99, "99"),
]


@pytest.mark.parametrize(("domain", "harm", "reason"), BROKEN)
def test_a_broken_sample_is_skipped_named_and_not_replaced(
    tmp_path: Path, domain: str, harm: Callable[[Path], None], reason: str
) -> None:
    root = make(tmp_path, train=("oak",), test=(), points=3, views=1)
    victim = image_path(root, domain, Sample("oak", 1, 0))
    data = open_dataset(root, None, ALL, 16)
    harm(victim)
    batch = data.load([0, 1, 2])
    assert batch.indices.tolist() == [0, 2]
    assert len(batch.rgb) == len(batch.targets["normal"]) == 2
    assert data.skipped == 1
    assert [fault.path for fault in data.faults] == [victim]
    assert reason in data.faults[0].reason
    data.load([1])
    assert data.skipped == 1
    found = check_dataset(root)
    assert victim in {fault.path for fault in found}
    assert any(reason in fault.reason for fault in found)


def test_all_faults_of_a_sample_are_recorded(tmp_path: Path) -> None:
    root = make(tmp_path, train=("oak",), test=(), points=1, views=1)
    data = open_dataset(root, None, ALL, 16)
    for domain in ("normal", "edge_texture"):
        image_path(root, domain, Sample("oak", 0, 0)).unlink()
    assert list(data.batches(np.arange(1), 4)) == []
    assert len(data.faults) == 2
    empty = data.load([0])
    assert len(empty) == 0
    assert empty.rgb.shape == (0, 3, 16, 16)


def test_opening_names_every_reason_at_once(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError) as caught:
        open_dataset(root, ["oak", "nowhere"], ["normal", "smell"], 2)
    assert len(caught.value.faults) == 3
    with pytest.raises(DatasetError, match="is not a folder"):
        open_dataset(tmp_path / "absent", None, ["rgb"], 16)
    (tmp_path / "rgb" / "oak").mkdir(parents=True)
    with pytest.raises(DatasetError, match="no images") as caught:
        open_dataset(tmp_path, None, ["normal"], 16)
    assert any("normal is missing" in fault for fault in caught.value.faults)


def test_a_manifest_of_another_format_is_refused(tmp_path: Path) -> None:
    root = make(tmp_path, train=("oak",), test=(), points=1, views=1)
    path = root / "mas-dataset.json"
    path.write_text(path.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(DatasetError, match="format 2"):
        read_manifest(root)
    assert "format 2" in check_dataset(root)[0].reason
    path.write_text("{")
    with pytest.raises(DatasetError, match=r"mas-dataset\.json"):
        open_dataset(root, None, ["rgb"], 16)


def test_sixteen_bits_are_read_whole(tmp_path: Path) -> None:
    values = np.array([[0, 1, 255], [256, 8192, 65535], [3, 2, 1]], np.uint16)
    Image.fromarray(values).save(tmp_path / "d.png")
    np.testing.assert_array_equal(read_image(tmp_path / "d.png", "depth_zbuffer"), values)
    with pytest.raises(ImageError, match="8-bit RGB"):
        read_image(tmp_path / "d.png", "rgb")


def reasons(root: Path, **options: object) -> dict[str, str]:
    found = check_dataset(root, **options)  # type: ignore[arg-type]
    return {str(fault.path.relative_to(root)): fault.reason for fault in found}


def test_a_sound_dataset_has_no_faults(root: Path) -> None:
    assert check_dataset(root) == []
    assert check_dataset(root, ALL) == []


def test_the_checker_reports_everything_at_once(tmp_path: Path) -> None:
    root = make(tmp_path, points=2, views=1)
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(image_path(root, "normal", Sample("oak", 0, 0)))
    class_99(image_path(root, "segment_semantic", Sample("oak", 1, 0)))
    image_path(root, "edge_texture", Sample("elm", 0, 0)).unlink()
    as_text(image_path(root, "rgb", Sample("elm", 1, 0)))
    for path in (root / "rgb" / "fir").iterdir():
        path.unlink()
    (root / "rgb" / "oak" / "holiday.png").write_bytes(b"")
    (root / "depth_zbuffer" / "oak" / "point_0_view_0_domain_normal.png").write_bytes(b"")
    (root / "normal" / "readme.txt").write_text("")
    (root / "keypoints2d" / "ghost").mkdir()
    (root / "rgb" / "unlisted").mkdir()
    write_manifest(root, ("oak", "elm", "lost"), ("fir", "oak"), 2)
    found = check_dataset(root)
    text = "\n".join(str(fault) for fault in found).replace(str(root), "")
    for expected in (
        "/normal/oak/point_0_view_0_domain_normal.png: 8x8 pixels, its picture has 16x16",
        "/segment_semantic/oak/point_1_view_0_domain_segment_semantic.png: class ids out of range 0..17: 99",
        "/edge_texture/elm/point_0_view_0_domain_edge_texture.png: missing",
        "/rgb/elm/point_1_view_0_domain_rgb.png: not an image",
        "/rgb/fir: building without images",
        "/rgb/fir/point_0_view_0_domain_rgb.png: missing",
        "/rgb/oak/holiday.png: stray name",
        "/depth_zbuffer/oak/point_0_view_0_domain_normal.png: says domain normal in the folder of depth_zbuffer",
        "/normal/readme.txt: stray file",
        "/keypoints2d/ghost: building has no pictures",
        "/rgb/unlisted: building is not listed",
        "/mas-dataset.json: building oak is listed for training and for testing",
        "/mas-dataset.json: building lost is listed but absent",
        "/mas-dataset.json: building fir should have 2 images and has 0",
    ):
        assert expected in text
    assert found == sorted(found, key=lambda fault: (str(fault.path), fault.reason))


def test_missing_domains_are_named_once_each(tmp_path: Path) -> None:
    root = make(tmp_path, train=("oak",), test=(), points=1, views=1, manifest=False)
    for path in (root / "normal" / "oak").iterdir():
        path.unlink()
    (root / "normal" / "oak").rmdir()
    (root / "normal").rmdir()
    assert reasons(root) == {}
    assert reasons(root, tasks=["normal", "saliency"]) == {"normal": "missing domain", "saliency": "missing domain"}
    assert "is not a folder" in check_dataset(root / "depth_zbuffer")[0].reason
    assert check_dataset(tmp_path / "absent")[0].reason == "not a folder"
