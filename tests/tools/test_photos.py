"""Photographs: what is read and what is refused, how they are dealt, and that splits never share one."""

from __future__ import annotations

import hashlib
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_agent.datasets import check_dataset, open_dataset, read_manifest
from tools import labels, photos
from tools.photos import PhotoPlan, PhotosError, PhotoUnusableError, write_photos
from tools.scenes.files import FolderError

SMALL = PhotoPlan(size=16, clients=2, seed=1, crops=3)


def picture(seed: int, height: int = 60, width: int = 90) -> np.ndarray:
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 200, 3)
    return np.clip(base + rng.normal(0, 25, (height, width, 3)), 0, 255).astype(np.uint8)


def album(folder: Path, count: int = 10) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        Image.fromarray(picture(number)).save(folder / f"p{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("photos")
    album(base / "album")
    write_photos(SMALL, base / "album", base / "out")
    return base / "out"


def digests(root: Path) -> dict[str, str]:
    files = [path for path in root.rglob("*") if path.is_file()]
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def listing(root: Path) -> list[tuple[str, int, str]]:
    rows = [line.split("\t") for line in (root / "photographs.tsv").read_text().splitlines()[1:]]
    return [(building, int(point), name) for building, point, name in rows]


def test_layout_manifest_and_checker(dataset: Path) -> None:
    manifest = read_manifest(dataset)
    assert manifest is not None
    assert manifest.buildings.train == ["client01", "client02"]
    assert manifest.buildings.test == ["test01"]
    assert manifest.domains == ["rgb", "edge_texture", "keypoints2d", "orientation", "saliency"]
    assert sum(manifest.images.values()) == 10 * 3
    assert check_dataset(dataset, ["rgb", "edge_texture", "keypoints2d", "orientation", "saliency"]) == []


def test_every_photograph_is_one_point_of_one_building(dataset: Path) -> None:
    rows = listing(dataset)
    assert sorted(name for _, _, name in rows) == [f"p{number:02d}.png" for number in range(10)]
    assert len({(building, point) for building, point, _ in rows}) == 10


def test_training_validation_and_test_share_no_photograph(dataset: Path) -> None:
    data = open_dataset(dataset, None, ["saliency"], 16)
    split = data.split()
    owner = {(building, point): name for building, point, name in listing(dataset)}
    used = [
        {owner[data.index[i].building, data.index[i].point] for i in side}
        for side in (split.train, split.val, split.test)
    ]
    assert all(used)
    assert not used[0] & used[1]
    assert not used[0] & used[2]
    assert not used[1] & used[2]
    assert len(used[0] | used[1] | used[2]) == 10


def test_labels_are_those_of_the_stored_picture(dataset: Path) -> None:
    for path in sorted((dataset / "rgb" / "client01").iterdir()):
        rgb = np.asarray(Image.open(path))
        for domain, label in (("edge_texture", labels.edge_label), ("orientation", labels.orientation_label)):
            other = Path(str(path).replace("/rgb/", f"/{domain}/").replace("domain_rgb", f"domain_{domain}"))
            np.testing.assert_array_equal(np.asarray(Image.open(other)), label(rgb))


def test_same_seed_same_bytes(dataset: Path, tmp_path: Path) -> None:
    write_photos(SMALL, dataset.parent / "album", tmp_path / "again")
    assert digests(tmp_path / "again") == digests(dataset)


def test_an_interrupted_run_is_completed(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = photos.write_atomic
    left = 25

    def interrupted(path: Path, data: bytes) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(photos, "write_atomic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_photos(SMALL, dataset.parent / "album", tmp_path / "out")
    assert read_manifest(tmp_path / "out") is None
    monkeypatch.undo()
    write_photos(SMALL, dataset.parent / "album", tmp_path / "out")
    assert digests(tmp_path / "out") == digests(dataset)


def test_clients_differ_in_colour_and_test_covers_the_range(tmp_path: Path) -> None:
    folder = tmp_path / "album"
    folder.mkdir()
    for number in range(24):
        hue = Image.new("HSV", (64, 64), (number * 10, 200, 200)).convert("RGB")
        noise = np.random.default_rng(number).integers(-20, 20, (64, 64, 1))
        Image.fromarray(np.clip(np.asarray(hue, int) + noise, 0, 255).astype(np.uint8)).save(
            folder / f"{number:02d}.png"
        )
    write_photos(PhotoPlan(size=16, clients=4, crops=1), folder, tmp_path / "out")
    hues: dict[str, list[int]] = {}
    for building, _, name in listing(tmp_path / "out"):
        hues.setdefault(building, []).append(int(name[:2]))
    ranges = [(min(hues[f"client0{k}"]), max(hues[f"client0{k}"])) for k in range(1, 5)]
    assert all(first[1] < second[0] for first, second in pairwise(ranges))
    assert max(hues["test01"]) - min(hues["test01"]) >= 12


def test_few_photographs_give_many_crops(tmp_path: Path) -> None:
    write_photos(PhotoPlan(size=16, clients=8), album(tmp_path / "album", 20), tmp_path / "out")
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    assert len(manifest.buildings.train) == 8
    assert all(count >= 48 for count in manifest.images.values())


def test_crops_lie_inside_and_the_first_is_the_whole_middle() -> None:
    pixels = np.zeros((40, 100, 3), np.uint8)
    pixels[:, 30:70] = (10, 20, 30)
    whole = photos.cut(pixels, 20, np.random.default_rng(0), whole=True)
    assert whole.shape == (20, 20, 3)
    assert (whole == (10, 20, 30)).all()
    for seed in range(30):
        crop = photos.cut(picture(seed), 16, np.random.default_rng(seed), whole=False)
        assert crop.shape == (16, 16, 3)


def test_exif_orientation_is_followed(tmp_path: Path) -> None:
    pixels = picture(0)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(photos.read_photo(tmp_path / "turned.png"), np.rot90(pixels, -1))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "CMYK", "I;16", "1"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    source = Image.fromarray(picture(3))
    if mode == "I;16":
        image = Image.fromarray((np.asarray(source)[..., 0].astype(np.uint16)) * 200)
    elif mode == "LA":
        image = source.convert("L").convert("LA")
    else:
        image = source.convert(mode)
    path = tmp_path / ("p.tif" if mode == "CMYK" else "p.png")
    image.save(path)
    read = photos.read_photo(path)
    assert read.dtype == np.uint8
    assert read.shape == (60, 90, 3)
    assert np.ptp(read) > 8


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((60, 60, 4), np.uint8)
    pixels[:30] = (200, 10, 10, 255)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "half.png")
    read = photos.read_photo(tmp_path / "half.png")
    assert tuple(read[0, 0]) == (200, 10, 10)
    assert tuple(read[-1, 0]) == (255, 255, 255)


def test_unusable_files_are_named_and_skipped(tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 9)
    (folder / "sub").mkdir()
    Image.fromarray(picture(50)).save(folder / "sub" / "deep.JPG", format="JPEG")
    (folder / "text.jpg").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "p00.png").read_bytes()[:2000])
    Image.fromarray(picture(51, 20, 20)).save(folder / "icon.png")
    Image.new("RGB", (80, 80), (5, 5, 5)).save(folder / "flat.png")
    Image.fromarray(picture(1)).save(folder / "copy.bmp")
    (folder / "notes.txt").write_text("not looked at")
    (folder / ".hidden").mkdir()
    Image.fromarray(picture(52)).save(folder / ".hidden" / "secret.png")
    summary = write_photos(SMALL, folder, tmp_path / "out")
    assert summary.photos == 10
    reasons = dict(line.split(": ", 1) for line in summary.skipped)
    assert set(reasons) == {"text.jpg", "cut.png", "icon.png", "flat.png", "p01.png"}
    assert reasons["text.jpg"] == "not an image"
    assert "unreadable" in reasons["cut.png"]
    assert "20x20" in reasons["icon.png"]
    assert reasons["p01.png"] == "the same picture as copy.bmp"
    assert {Path(name).name for _, _, name in listing(tmp_path / "out")} >= {"deep.JPG"}


def test_none_and_too_few_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(PhotosError, match="no photographs under"):
        write_photos(SMALL, tmp_path / "empty", tmp_path / "out")
    with pytest.raises(PhotosError, match="is not a folder"):
        write_photos(SMALL, tmp_path / "absent", tmp_path / "out")
    folder = album(tmp_path / "album", 7)
    with pytest.raises(PhotosError, match=re.escape("8 clients need 20")) as caught:
        write_photos(PhotoPlan(), folder, tmp_path / "out")
    assert "--clients 2" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_output_inside_the_album_is_refused(tmp_path: Path) -> None:
    folder = album(tmp_path / "album")
    with pytest.raises(PhotosError, match="lies inside"):
        write_photos(SMALL, folder, folder / "out")


def test_a_changed_album_does_not_mix_with_an_old_dataset(dataset: Path, tmp_path: Path) -> None:
    folder = album(tmp_path / "album", 11)
    with pytest.raises(FolderError, match="another dataset"):
        write_photos(SMALL, folder, dataset)


def test_a_huge_picture_is_refused_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(0)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(PhotoUnusableError, match="unreadable"):
        photos.read_photo(tmp_path / "bomb.png")


def test_all_bad_numbers_are_named_at_once() -> None:
    assert [fault.split()[0] for fault in PhotoPlan(size=1, clients=0, crops=-1).faults()] == [
        "--size", "--clients", "--crops",
    ]  # fmt: skip
