"""Anybody's photographs as a federated dataset with tasks that need no labels.

A photograph is a point and its crops are that point's views, so training and validation never share a photograph;
clients get photographs sorted by colour and brightness, so they differ as real people's albums do; test buildings hold
photographs of the whole range that no client has.
"""

from __future__ import annotations

import colorsys
import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from edge_agent.datasets.layout import MANIFEST_FORMAT, Buildings, Generator, Manifest, Sample, image_path
from tools.labels import edge_label, keypoint_label, orientation_label, saliency_label
from tools.scenes import png
from tools.scenes.files import FolderError, claim, finish, point_numbers, write_atomic

if TYPE_CHECKING:
    from PIL import Image

GENERATOR_VERSION = "photos-1"
_ENDINGS = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm"})
#: Below this many pixels on the short side a picture is an icon, not a photograph.
_SMALLEST_PX = 48
_CROPS_PER_CLIENT = 48
_MOST_CROPS = 40
_LONGEST_PX = 2048

Rgb = npt.NDArray[np.uint8]
Stored = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]

LABELS: dict[str, Callable[[Rgb], Stored]] = {
    "rgb": lambda rgb: rgb,
    "edge_texture": edge_label,
    "keypoints2d": keypoint_label,
    "orientation": orientation_label,
    "saliency": saliency_label,
}


class PhotosError(FolderError):
    """The photographs cannot be turned into a dataset; the message says what to do."""


class PhotoUnusableError(Exception):
    """One picture cannot be used; the others can."""


@dataclass(frozen=True, slots=True)
class PhotoPlan:
    """How photographs become clients. `crops` is per photograph, 0 = as many as make about 48 images a client."""

    size: int = 64
    clients: int = 8
    seed: int = 0
    crops: int = 0

    @property
    def test_buildings(self) -> int:
        """A quarter as many test buildings as clients, one at least."""
        return max(1, self.clients // 4)

    @property
    def fewest_photos(self) -> int:
        """Two for every building: one to train on and one to validate with."""
        return 2 * (self.clients + self.test_buildings)

    def command(self) -> str:
        """The command line that makes this dataset again, the photographs' folder left open."""
        return (
            f"mas data photos DIR OUT --size {self.size} --clients {self.clients} "
            f"--seed {self.seed} --crops {self.crops}"
        )

    def faults(self) -> list[str]:
        """Everything that is wrong with the numbers, one line each."""
        ranges = {"size": (16, 1024), "clients": (1, 10_000), "seed": (0, 2**63), "crops": (0, 1000)}
        return [
            f"--{name} is {getattr(self, name)}, must be {low} to {high}"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]


@dataclass(frozen=True, slots=True)
class Photo:
    """A usable photograph: its path below the folder, a hash of its pixels, and where it stands among the others."""

    path: Path
    digest: str
    rank: tuple[float, float]


@dataclass(frozen=True, slots=True)
class PhotoSummary:
    """What was made; `skipped` names each file that could not be used, with the reason."""

    root: Path
    photos: int
    images: int
    buildings: dict[str, int]
    skipped: tuple[str, ...]
    wall_s: float


def write_photos(
    plan: PhotoPlan,
    folder: Path,
    root: Path,
    *,
    scanned: Callable[[int, int], None] = lambda done, total: None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> PhotoSummary:
    """Cut every usable photograph under `folder` into the layout at `root`; `(done, total)` goes to the two callbacks.

    Raises PhotosError for impossible numbers or too few photographs, FolderError where `root` holds something else.
    """
    started = time.monotonic()
    if faults := plan.faults():
        raise PhotosError("; ".join(faults))
    if root.resolve().is_relative_to(folder.resolve()):
        raise PhotosError(
            f"{root} lies inside {folder}, so its crops would be taken for photographs; choose another folder"
        )
    photos, skipped = scan(folder, scanned)
    if len(photos) < plan.fewest_photos:
        raise PhotosError(_too_few(plan, folder, len(photos), skipped))
    dealt = deal(plan, photos)
    content = hashlib.sha256("".join(sorted(photo.digest for photo in photos)).encode()).hexdigest()[:16]
    generator = Generator(plan.command(), plan.seed, f"{GENERATOR_VERSION} {content}")
    claim(root, generator)
    images: dict[str, int] = {}
    listing = ["building\tpoint\tphotograph"]
    done = 0
    for name, members in dealt.items():
        crops = _crops_each(plan, len(members))
        images[name] = crops * len(members)
        for point, photo in zip(point_numbers(name, len(members)), members, strict=True):
            _write_photo(plan, folder, root, photo, Sample(name, point, 0), crops)
            listing.append(f"{name}\t{point}\t{photo.path.as_posix()}")
            done += 1
            progress(done, len(photos))
    write_atomic(root / "photographs.tsv", ("\n".join(listing) + "\n").encode())
    names = list(dealt)
    buildings = Buildings(names[: plan.clients], names[plan.clients :])
    finish(root, Manifest(MANIFEST_FORMAT, "photos", generator, plan.size, list(LABELS), buildings, {}, images))
    return PhotoSummary(root, len(photos), sum(images.values()), images, tuple(skipped), time.monotonic() - started)


def scan(folder: Path, scanned: Callable[[int, int], None] = lambda done, total: None) -> tuple[list[Photo], list[str]]:
    """Usable photographs under `folder` and the reasons against the others. Raises PhotosError for no folder."""
    if not folder.is_dir():
        raise PhotosError(f"{folder} is not a folder")
    paths = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in _ENDINGS
        and path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    photos: dict[str, Photo] = {}
    skipped: list[str] = []
    for number, path in enumerate(paths, 1):
        below = path.relative_to(folder)
        try:
            pixels = read_photo(path)
        except PhotoUnusableError as error:
            skipped.append(f"{below}: {error}")
            continue
        finally:
            scanned(number, len(paths))
        digest = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest()
        if digest in photos:
            # The same picture on both sides of a split would make the test worthless.
            skipped.append(f"{below}: the same picture as {photos[digest].path}")
            continue
        photos[digest] = Photo(below, digest, _rank(pixels))
    return list(photos.values()), skipped


def read_photo(path: Path) -> Rgb:
    """A picture as upright 8-bit RGB `[H, W, 3]`, at most 2048 pixels long. Raises PhotoUnusableError."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            opened.load()
            image = ImageOps.exif_transpose(opened)
            if image.mode.startswith("I") or image.mode == "F":
                image = _eight_bit(np.asarray(image, np.float64))
            if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
                layered = image.convert("RGBA")
                image = Image.alpha_composite(Image.new("RGBA", layered.size, (255, 255, 255, 255)), layered)
            image = image.convert("RGB")
            image.thumbnail((_LONGEST_PX, _LONGEST_PX), Image.Resampling.BOX)
            pixels = np.asarray(image)
    except UnidentifiedImageError:
        raise PhotoUnusableError("not an image") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PhotoUnusableError(f"unreadable: {error}") from error
    if min(pixels.shape[:2]) < _SMALLEST_PX:
        raise PhotoUnusableError(f"{pixels.shape[1]}x{pixels.shape[0]} pixels, less than {_SMALLEST_PX} on a side")
    if int(pixels.max()) - int(pixels.min()) < 8:
        raise PhotoUnusableError("a single flat colour")
    return pixels


def deal(plan: PhotoPlan, photos: list[Photo]) -> dict[str, list[Photo]]:
    """Building name -> its photographs: clients first, then test buildings, no photograph twice.

    Test photographs are taken evenly out of the whole range; what is left is cut into neighbouring groups.
    """
    ordered = sorted(photos, key=lambda photo: (photo.rank, photo.digest))
    share = plan.test_buildings / (plan.clients + plan.test_buildings)
    held_out = max(2 * plan.test_buildings, round(share * len(ordered)))
    picked = {int(place) for place in np.floor((np.arange(held_out) + 0.5) * len(ordered) / held_out)}
    test = [photo for place, photo in enumerate(ordered) if place in picked]
    rest = [photo for place, photo in enumerate(ordered) if place not in picked]
    dealt = {f"client{number:02d}": group for number, group in enumerate(_groups(rest, plan.clients), 1)}
    # Test buildings are alike on purpose: each shows a bit of everything.
    shuffled = [test[place] for place in np.random.default_rng([plan.seed, 7]).permutation(len(test))]
    dealt |= {f"test{number:02d}": group for number, group in enumerate(_groups(shuffled, plan.test_buildings), 1)}
    return dealt


def _groups(photos: list[Photo], count: int) -> list[list[Photo]]:
    edges = [round(k * len(photos) / count) for k in range(count + 1)]
    return [photos[edges[k] : edges[k + 1]] for k in range(count)]


def _crops_each(plan: PhotoPlan, photos: int) -> int:
    return plan.crops or max(1, min(_MOST_CROPS, -(-_CROPS_PER_CLIENT // photos)))


def _write_photo(plan: PhotoPlan, folder: Path, root: Path, photo: Photo, first: Sample, crops: int) -> None:
    samples = [Sample(first.building, first.point, view) for view in range(crops)]
    if all(image_path(root, domain, sample).is_file() for sample in samples for domain in LABELS):
        return
    try:
        pixels = read_photo(folder / photo.path)
    except PhotoUnusableError as error:
        raise PhotosError(f"{folder / photo.path} was readable and no longer is: {error}") from error
    rng = np.random.default_rng([plan.seed, int(photo.digest[:15], 16)])
    for sample in samples:
        rgb = cut(pixels, plan.size, rng, whole=sample.view == 0)
        for domain, label in LABELS.items():
            write_atomic(image_path(root, domain, sample), png.encode(label(rgb)))


def cut(pixels: Rgb, size: int, rng: np.random.Generator, *, whole: bool) -> Rgb:
    """A square crop scaled to `size`: the largest central one, or one of 35 to 100 % of the short side anywhere."""
    from PIL import Image

    height, width = pixels.shape[:2]
    short = min(height, width)
    side, left, top = short, (width - short) // 2, (height - short) // 2
    if not whole:
        side = int(rng.integers(min(short, max(size, round(0.35 * short))), short + 1))
        left, top = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
    crop = Image.fromarray(np.ascontiguousarray(pixels[top : top + side, left : left + side]))
    method = Image.Resampling.BOX if side >= 2 * size else Image.Resampling.BICUBIC
    return np.asarray(crop.resize((size, size), method))


def _eight_bit(values: npt.NDArray[np.float64]) -> Image.Image:
    from PIL import Image

    low, high = float(values.min()), float(values.max())
    return Image.fromarray(np.asarray(255 * (values - low) / max(high - low, 1e-9), np.uint8))


def _rank(pixels: Rgb) -> tuple[float, float]:
    """Grey pictures by brightness first, then coloured ones by their mean hue."""
    small = pixels[:: max(1, pixels.shape[0] // 64), :: max(1, pixels.shape[1] // 64)].reshape(-1, 3)
    red, green, blue = (float(part) for part in small.mean(axis=0) / 255)
    hue, saturation, value = colorsys.rgb_to_hsv(red, green, blue)
    return (0.0, value) if saturation < 0.08 else (1.0 + hue, value)


def _too_few(plan: PhotoPlan, folder: Path, found: int, skipped: list[str]) -> str:
    reasons = f" ({len(skipped)} could not be used, e.g. {skipped[0]})" if skipped else ""
    if found == 0:
        return f"no photographs under {folder}{reasons}; jpg, png, webp, bmp, tif and gif files are read"
    advice = "give more photographs"
    fitting = [
        clients for clients in range(plan.clients - 1, 0, -1) if PhotoPlan(clients=clients).fewest_photos <= found
    ]
    if fitting:
        advice += f" or --clients {fitting[0]}"
    return f"{found} photographs under {folder}{reasons}, {plan.clients} clients need {plan.fewest_photos}; {advice}"
