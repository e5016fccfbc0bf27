"""The renderer and its encodings on scenes whose depth, normals and classes can be worked out by hand."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tools.scenes import png
from tools.scenes.camera import Camera, view_score
from tools.scenes.encode import View, encode_view
from tools.scenes.meshes import Material
from tools.scenes.render import Renderer
from tools.scenes.soup import Builder, PointLight, Soup
from tools.scenes.styles import Style, draw_style


@pytest.fixture
def style() -> Style:
    return replace(draw_style(0, 0, ()), field_of_view_deg=60.0)


def quad(builder: Builder, corners: list[tuple[float, float, float]], class_id: int, colour: float = 0.5) -> None:
    material = builder.surface(Material((colour, colour, colour)))
    builder.quad(np.asarray(corners, np.float64), np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]), material, class_id)


def soup_of(builder: Builder) -> Soup:
    corners, normals, uv, material = (np.concatenate([part[k] for part in builder.parts]) for k in range(4))
    class_id = np.concatenate([np.full(len(part[0]), part[4], np.uint8) for part in builder.parts])
    lamp = PointLight((0.0, 1.8, 0.5), (2.0, 2.0, 2.0))
    return Soup(
        corners, normals, uv, material, class_id, tuple(builder.materials), (lamp,), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)
    )


def wall_and_floor() -> Soup:
    """A wall 4 m ahead (class 1) that ends 2 m up, and the floor (class 2); nothing behind or above."""
    builder = Builder()
    quad(builder, [(-9, 0, 4), (9, 0, 4), (9, 2, 4), (-9, 2, 4)], 1)
    quad(builder, [(-9, 0, -2), (9, 0, -2), (9, 0, 4), (-9, 0, 4)], 2)
    return soup_of(builder)


CAMERA = Camera((0.0, 1.0, 0.0), 0.0, 0.0, 60.0)


def seen(soup: Soup, style: Style, size: int) -> View:
    renderer = Renderer(soup, style)
    rgb, surface = renderer.shoot(CAMERA, size)
    return View(rgb, renderer.labels(CAMERA, size), surface, "living")


def test_depth_is_along_the_axis_in_512ths_of_a_metre(style: Style) -> None:
    size = 32
    stored = encode_view(seen(wall_and_floor(), style, size))
    depth, classes = stored["depth_zbuffer"], stored["segment_semantic"]
    assert depth.dtype == np.uint16
    # The wall is 4 m away along the axis everywhere, in the corners of the picture too.
    assert set(np.unique(depth[classes == 1])) == {4 * 512}
    slope = ((np.arange(size) + 0.5) / size * 2 - 1) * math.tan(math.radians(30))
    for row in np.flatnonzero(slope > 0.26):
        # The floor is 1 m below: it is met where depth * slope = 1 m.
        assert (classes[row] == 2).all()
        np.testing.assert_allclose(depth[row].astype(float), 512 / slope[row], atol=0.51)
    above = slope < -0.26
    assert (depth[above] == 65535).all()
    assert (classes[above] == 0).all()


def test_normals_are_in_the_cameras_frame(style: Style) -> None:
    stored = encode_view(seen(wall_and_floor(), style, 32))
    normal, classes = stored["normal"], stored["segment_semantic"]
    assert {tuple(n) for n in normal[classes == 1].tolist()} == {(127, 127, 254)}
    assert {tuple(n) for n in normal[classes == 2].tolist()} == {(127, 254, 127)}
    assert {tuple(n) for n in normal[classes == 0].tolist()} == {(127, 127, 127)}


def test_a_wall_on_the_right_faces_left(style: Style) -> None:
    builder = Builder()
    # Looking along +z with y up, the picture's right is -x.
    quad(builder, [(-1, -5, -5), (-1, 5, -5), (-1, 5, 9), (-1, -5, 9)], 1)
    labels = Renderer(soup_of(builder), style).labels(CAMERA, 16)
    assert (labels.class_id[8, 10:] == 1).all()
    assert (labels.class_id[8, :7] == 0).all()
    np.testing.assert_allclose(labels.normal[8, 15], [-1, 0, 0], atol=1e-6)


def test_normals_face_the_camera_whatever_the_winding(style: Style) -> None:
    builder = Builder()
    quad(builder, [(-9, 0, 4), (-9, 9, 4), (9, 9, 4), (9, 0, 4)], 1)
    labels = Renderer(soup_of(builder), style).labels(CAMERA, 8)
    assert (labels.normal[..., 2][labels.class_id == 1] > 0.999).all()


def test_pitch_and_yaw_turn_the_view(style: Style) -> None:
    soup = wall_and_floor()
    down = Renderer(soup, style).labels(Camera((0.0, 1.0, 0.0), 0.0, -90.0, 60.0), 9)
    assert (down.class_id == 2).all()
    np.testing.assert_allclose(down.depth_m, 1.0, atol=1e-5)
    away = Renderer(soup, style).labels(Camera((0.0, 1.0, 0.0), 180.0, 20.0, 30.0), 9)
    assert np.isinf(away.depth_m).all()


def test_labels_are_never_blended_but_the_picture_is(style: Style) -> None:
    builder = Builder()
    quad(builder, [(-9, -9, 4), (9, -9, 4), (9, 9, 4), (-9, 9, 4)], 1, colour=0.05)
    quad(builder, [(0.1, -9, 3), (9, -9, 3), (9, 9, 3), (0.1, 9, 3)], 17, colour=0.8)
    renderer = Renderer(soup_of(builder), style)
    labels = renderer.labels(CAMERA, 31)
    assert set(np.unique(labels.class_id)) == {1, 17}
    np.testing.assert_allclose(np.unique(labels.depth_m.round(4)), [3.0, 4.0])
    picture = renderer.picture(CAMERA, 31)
    assert picture.dtype == np.uint8
    row = picture[15, :, 0].astype(int)
    dark, bright = row[-4:].mean(), row[:4].mean()
    assert bright > dark + 40


def test_things_cast_shadows(style: Style) -> None:
    builder = Builder()
    quad(builder, [(-9, 0, -9), (9, 0, -9), (9, 0, 9), (-9, 0, 9)], 2)
    quad(builder, [(-0.4, 1.2, 2.6), (0.4, 1.2, 2.6), (0.4, 1.2, 3.4), (-0.4, 1.2, 3.4)], 9)
    soup = replace(soup_of(builder), lights=(PointLight((0.0, 2.4, 3.0), (4.0, 4.0, 4.0)),))
    camera = Camera((0.0, 1.0, 0.0), 0.0, -10.0, 60.0)
    classes = Renderer(soup, style).labels(camera, 48).class_id
    picture = Renderer(soup, style).picture(camera, 48)
    without = Renderer(replace(soup, lights=()), style).picture(camera, 48)
    row = int(np.argmin(np.abs(np.arange(48) - 34)))
    assert (classes[row] == 2).all()
    lit, shaded = picture[row, 2:8].mean(), picture[row, 22:26].mean()
    assert shaded < 0.8 * lit
    assert without[row, 22:26].mean() == pytest.approx(without[row, 2:8].mean(), rel=0.1)


def test_view_score_refuses_walls_at_the_nose_and_empty_views() -> None:
    depth = np.full((24, 24), 3.0)
    classes = np.full((24, 24), 1, np.uint8)
    assert view_score(depth, classes) < 0
    classes[:, :8] = 7
    assert view_score(depth, classes) > 0
    near = depth.copy()
    near[:3] = 0.2
    assert view_score(near, classes) < 0
    assert view_score(np.full((24, 24), np.inf), classes) < 0


@pytest.mark.parametrize(
    "pixels",
    [
        np.random.default_rng(0).integers(0, 256, (17, 23, 3), dtype=np.uint8),
        np.random.default_rng(1).integers(0, 65536, (23, 17), dtype=np.uint16),
        np.random.default_rng(2).integers(0, 18, (9, 9), dtype=np.uint8),
        np.random.default_rng(3).integers(0, 256, (90, 90, 3), dtype=np.uint8),
        np.zeros((1, 1), np.uint16),
        np.tile(np.arange(64, dtype=np.uint8), (64, 1)),
    ],
)
def test_png_comes_back_unchanged(pixels: np.ndarray) -> None:
    data = png.encode(pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        np.testing.assert_array_equal(np.asarray(image).astype(pixels.dtype), pixels)
    assert png.encode(pixels) == data
    with Image.open(io.BytesIO(png.encode(pixels, thorough=False))) as image:
        np.testing.assert_array_equal(np.asarray(image).astype(pixels.dtype), pixels)


def test_png_refuses_what_it_cannot_store() -> None:
    with pytest.raises(ValueError, match="float64"):
        png.encode(np.zeros((4, 4)))
