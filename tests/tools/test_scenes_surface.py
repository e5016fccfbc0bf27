"""Labels of shape on bodies whose answer is known: balls, planes, boxes, steps and creases."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import trimesh

from edge_agent.datasets.images import read_image
from models.tasks import TASKS
from tools.scenes import encode
from tools.scenes.camera import Camera
from tools.scenes.encode import DOMAINS, ENCODERS, VECTORS, View, domains_of, encode_view, files_of
from tools.scenes.meshes import Material
from tools.scenes.patterns import checker
from tools.scenes.render import Renderer
from tools.scenes.soup import Builder, PointLight, Soup
from tools.scenes.styles import ROOM_KINDS, draw_style
from tools.scenes.surface import Surface, curvatures, halve, occlusion, shading
from tools.scenes.textures import Texture, from_srgb

SIZE = 64
#: Looks along +z from the origin; the picture's right is -x.
CAMERA = Camera((0.0, 0.0, 0.0), 0.0, 0.0, 60.0)
Corners = list[tuple[float, float, float]]


def quad(builder: Builder, corners: Corners, class_id: int, texture: Texture | None = None) -> None:
    material = builder.surface(Material((0.5, 0.5, 0.5), texture))
    builder.quad(np.asarray(corners, np.float64), np.array([[0.0, 0], [1, 0], [1, 1], [0, 1]]), material, class_id)


def wall(builder: Builder, z: float, class_id: int = 1, half: float = 20.0, texture: Texture | None = None) -> None:
    quad(builder, [(-half, -half, z), (half, -half, z), (half, half, z), (-half, half, z)], class_id, texture)


def ball(builder: Builder, radius: float, z: float, *, normals: bool = True) -> None:
    mesh = trimesh.creation.icosphere(subdivisions=5, radius=radius)
    corners = np.asarray(mesh.vertices)[mesh.faces]
    bent = corners / radius if normals else np.zeros_like(corners)
    count = len(corners)
    material = np.full(count, builder.surface(Material((0.5, 0.5, 0.5))), np.int32)
    placed = (corners + np.array([0, 0, z])).astype(np.float32)
    builder.parts.append((placed, bent.astype(np.float32), np.zeros((count, 3, 2), np.float32), material, 17))


def look(fill: Callable[[Builder], None], camera: Camera = CAMERA, size: int = SIZE) -> View:
    builder = Builder()
    fill(builder)
    corners, normals, uv, material = (np.concatenate([part[k] for part in builder.parts]) for k in range(4))
    class_id = np.concatenate([np.full(len(part[0]), part[4], np.uint8) for part in builder.parts])
    lamp = PointLight((0.0, 1.8, 0.5), (2.0, 2.0, 2.0))
    soup = Soup(
        corners, normals, uv, material, class_id, tuple(builder.materials), (lamp,), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0)
    )
    renderer = Renderer(soup, replace(draw_style(0, 0, ()), dome=0.5))
    rgb, surface = renderer.shoot(camera, size)
    return View(rgb, renderer.labels(camera, size), surface, "kitchen")


@pytest.mark.parametrize("normals", [True, False])
@pytest.mark.parametrize("radius", [0.3, 0.6])
def test_a_ball_has_the_inverse_of_its_radius_twice(radius: float, normals: bool) -> None:
    view = look(lambda builder: ball(builder, radius, 3.0, normals=normals))
    found = curvatures(view.surface)
    middle = slice(SIZE - 5, SIZE + 5)
    both = found[middle, middle].reshape(-1, 2)
    # Without smooth normals single facets can be seen.
    np.testing.assert_allclose(both.mean(axis=0), 1 / radius, rtol=0.03 if normals else 0.1)
    assert (both[:, 0] >= both[:, 1]).all()
    stored = encode.principal_curvature(view)[28:36, 28:36, :2]
    np.testing.assert_allclose(stored.mean(axis=(0, 1)), 127 + 127 / radius / encode.CURVATURE_FULL_PER_M, atol=2)


def test_inside_a_ball_curvatures_are_negative() -> None:
    found = curvatures(look(lambda builder: ball(builder, 2.0, 0.0)).surface)
    np.testing.assert_allclose(np.median(found, axis=(0, 1)), [-0.5, -0.5], rtol=0.03)


def test_a_tube_bends_one_way_only() -> None:
    def tube(builder: Builder) -> None:
        turn = np.linspace(0, 2 * np.pi, 721)
        for a, b in pairwise(turn):
            x0, z0, x1, z1 = 0.5 * np.cos(a), 3 + 0.5 * np.sin(a), 0.5 * np.cos(b), 3 + 0.5 * np.sin(b)
            quad(builder, [(x0, -9, z0), (x1, -9, z1), (x1, 9, z1), (x0, 9, z0)], 17)

    found = curvatures(look(tube).surface)[:, SIZE - 4 : SIZE + 4]
    assert found[..., 0].mean() == pytest.approx(2.0, rel=0.1)
    assert np.abs(found[..., 1]).max() < 0.1


@pytest.mark.parametrize(("yaw_deg", "pitch_deg"), [(0, 0), (40, 15), (-30, -20)])
def test_planes_are_flat_at_every_angle(yaw_deg: float, pitch_deg: float) -> None:
    view = look(lambda builder: wall(builder, 3.0, half=60.0), Camera((0.0, 0.0, 0.0), yaw_deg, pitch_deg, 60.0))
    assert (view.labels.class_id == 1).all()
    assert (encode.principal_curvature(view) == 127).all()
    assert not encode.edge_occlusion(view).any()


def test_nothing_in_view_gives_neutral_labels() -> None:
    view = look(lambda builder: wall(builder, -3.0))
    stored = encode_view(view)
    assert (stored["depth_zbuffer"] == 65535).all()
    assert (stored["principal_curvature"] == 127).all()
    for domain in ("reshading", "edge_occlusion", "segment_semantic"):
        assert not stored[domain].any()
    assert encode.distance(view) == 16.0
    assert sum(encode.class_object(view)) == encode.class_object(view)[0] == 1


def test_a_box_is_outlined_on_its_own_side_and_a_painted_edge_is_not() -> None:
    rng = np.random.default_rng(0)
    squares = from_srgb(checker(rng, ((0.9, 0.9, 0.9), (0.05, 0.05, 0.05), (0, 0, 0))))

    def scene(builder: Builder) -> None:
        wall(builder, 6.0, half=3.6, texture=squares)
        wall(builder, 3.0, 9, half=0.6)

    view = look(scene)
    heat, classes = encode.edge_occlusion(view), view.labels.class_id
    raw = occlusion(view.surface)
    front = np.kron(classes == 9, np.ones((2, 2), bool))
    outline = front & ~(np.roll(front, 1, 0) & np.roll(front, -1, 0) & np.roll(front, 1, 1) & np.roll(front, -1, 1))
    np.testing.assert_array_equal(raw == 1, outline)
    assert not raw[~outline].any()
    # Painted squares are strong edges of the picture, and none of the shapes.
    texture_only = np.ones_like(heat, bool)
    texture_only[20:44, 20:44] = False
    assert encode_view(view)["edge_texture"][texture_only].max() > 2000
    assert heat[texture_only].max() == 0


def test_creases_floors_at_flat_angles_and_things_on_walls_are_no_occlusions() -> None:
    def corridor(builder: Builder) -> None:
        quad(builder, [(-30, -1.0, -2), (30, -1.0, -2), (30, -1.0, 7), (-30, -1.0, 7)], 2)
        wall(builder, 7.0)
        quad(builder, [(-0.5, 0.2, 6.97), (0.5, 0.2, 6.97), (0.5, 1.2, 6.97), (-0.5, 1.2, 6.97)], 15)

    view = look(corridor)
    assert set(np.unique(view.labels.class_id)) == {1, 2, 15}
    assert not occlusion(view.surface).any()


def test_the_gap_decides_how_strong_an_occlusion_is() -> None:
    strengths = []
    for behind in (3.03, 3.3, 4.0, 4.6):

        def scene(builder: Builder, behind: float = behind) -> None:
            wall(builder, behind)
            wall(builder, 3.0, 9, half=0.6)

        strengths.append(float(occlusion(look(scene).surface).max()))
    assert strengths[0] == 0
    assert strengths == sorted(strengths)
    assert strengths[1] == pytest.approx(0.25 / 1.45, abs=0.01)
    assert strengths[-1] == 1


def test_a_box_edge_is_convex_and_a_rooms_corner_hollow() -> None:
    def wedge(builder: Builder, sign: float = 1.0) -> None:
        for side in (-1, 1):
            quad(builder, [(0, -9, 3), (0, 9, 3), (side * 4, 9, 3 + 4 * sign), (side * 4, -9, 3 + 4 * sign)], 1)

    convex = encode.principal_curvature(look(wedge))
    hollow = encode.principal_curvature(look(lambda builder: wedge(builder, -0.6)))
    assert convex[:, 31:33, 0].min() > 160
    assert hollow[:, 31:33, 0].max() < 95
    for stored in (convex, hollow):
        assert (stored[:, :28] == 127).all()
        assert np.abs(stored[:, :, 1].astype(int) - 127).max() <= 3


def test_shading_is_brightest_at_the_nearest_point_and_follows_lambert() -> None:
    view = look(lambda builder: wall(builder, 3.0))
    light = shading(view.surface)
    centre = light[SIZE - 1 : SIZE + 1, SIZE - 1 : SIZE + 1]
    assert light.max() == pytest.approx(centre.max())
    assert light.argmax() in {k * 2 * SIZE + j for k in (SIZE - 1, SIZE) for j in (SIZE - 1, SIZE)}
    step = (1 - 1 / (2 * SIZE)) * np.tan(np.radians(30))
    corner = 9 * (1 + 2 * step**2)
    assert light[0, 0] == pytest.approx(1.45 * (3 / np.sqrt(corner)) / (1 + corner / 16), rel=1e-4)
    stored = encode.reshading(view)
    assert stored.shape == (SIZE, SIZE, 3)
    assert (stored[..., 0] == stored[..., 1]).all()
    assert (stored[..., 0] == stored[..., 2]).all()


def test_shading_knows_no_textures() -> None:
    squares = from_srgb(checker(np.random.default_rng(0), ((0.9, 0.9, 0.9), (0.05, 0.05, 0.05), (0, 0, 0))))
    plain, painted = (look(lambda builder, t=t: wall(builder, 3.0, texture=t)) for t in (None, squares))
    np.testing.assert_array_equal(encode.reshading(plain), encode.reshading(painted))
    assert (plain.rgb != painted.rgb).any()


def test_boxes_whose_normals_were_averaged_stay_flat() -> None:
    """Loaders round boxes that come without normals; neither shading nor curvature may believe them."""

    def box(builder: Builder) -> None:
        wall(builder, 3.0, half=1.2)
        corners, _, uv, material, class_id = builder.parts.pop()
        rounded = corners - np.array([0, 0, 4.2], np.float32)
        rounded /= np.linalg.norm(rounded, axis=-1, keepdims=True)
        builder.parts.append((corners, rounded, uv, material, class_id))

    view = look(box)
    assert (encode.principal_curvature(view)[view.labels.class_id == 1] == 127).all()


def test_numbers_of_the_whole_picture() -> None:
    def scene(builder: Builder) -> None:
        wall(builder, 4.0)
        wall(builder, 2.0, 9, half=0.4)
        wall(builder, 1.9, 15, half=0.02)

    view = look(scene)
    present = encode.class_object(view)
    assert len(present) == TASKS["class_object"].channels
    assert [number for number, flag in enumerate(present) if flag] == [1, 9]
    assert (view.labels.class_id == 15).any()
    depth = encode.depth(view)
    assert encode.distance(view) == pytest.approx(depth.mean() / 512, abs=1e-4)
    assert encode.class_scene(view) == ROOM_KINDS.index("kitchen") == 2
    assert TASKS["class_scene"].channels >= len(ROOM_KINDS)


def test_every_file_comes_back_as_it_was_stored(tmp_path: Path) -> None:
    view = look(lambda builder: (wall(builder, 4.0), ball(builder, 0.5, 2.5))[0])
    stored, files = encode_view(view), files_of(view)
    assert tuple(files) == DOMAINS
    for domain, pixels in stored.items():
        path = tmp_path / f"{domain}.png"
        path.write_bytes(files[domain])
        np.testing.assert_array_equal(read_image(path, domain), pixels)
    assert json.loads(files["class_object"]) == encode.class_object(view)
    assert json.loads(files["distance"]) == encode.distance(view)
    assert json.loads(files["class_scene"]) == 2


def test_the_papers_nine_are_all_there() -> None:
    nine = {TASKS[name].domain for name in TASKS if TASKS[name].letter in "sdnkterca"}
    assert nine <= set(ENCODERS)
    assert {name for name in VECTORS if TASKS[name].is_vector} == set(VECTORS)


def test_tasks_name_the_folders_that_they_need() -> None:
    assert domains_of("sk") == ("rgb", "segment_semantic", "keypoints2d")
    assert domains_of("n,distance") == ("rgb", "depth_zbuffer", "normal", "distance")
    assert set(domains_of("sdnktercapmz")) == set(DOMAINS)
    with pytest.raises(ValueError, match="no labels for saliency"):
        domains_of("sv")
    with pytest.raises(ValueError, match="unknown task"):
        domains_of("q7")


def test_halving_is_the_mean_of_four() -> None:
    values = np.arange(16, dtype=np.float32).reshape(4, 4)
    np.testing.assert_array_equal(halve(values), [[2.5, 4.5], [10.5, 12.5]])


def test_positions_of_a_grid_lie_on_their_rays() -> None:
    depth = np.full((2, 2), 2.0, np.float32)
    depth[0, 0] = np.inf
    zero = np.zeros((2, 2, 3), np.float32)
    points = Surface(depth, zero, zero, 1.0).positions()
    np.testing.assert_allclose(points[0, 1], [1, 1, -2])
    np.testing.assert_allclose(points[1, 0], [-1, -1, -2])
    np.testing.assert_allclose(points[0, 0], 0)
