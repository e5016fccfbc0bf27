"""Furnished rooms: nothing outside, nothing inside anything else; styles and roles."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from tiny_furniture import MODELS, write_set

from tools.scenes.catalogue import CatalogueError, Model, free_licence, read_catalogue
from tools.scenes.fetch import fetch_catalogue
from tools.scenes.meshes import ModelError, load_model
from tools.scenes.roles import CLASSES, classify
from tools.scenes.rooms import furnish
from tools.scenes.styles import ROOM_KINDS, building_name, draw_style


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, ...]:
    return read_catalogue(write_set(tmp_path_factory.mktemp("furniture")))


@pytest.mark.parametrize("kind", ROOM_KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_furniture_stands_inside_and_apart(models: tuple[Model, ...], kind: str, seed: int) -> None:
    room = furnish(draw_style(seed, 0, models), kind, np.random.default_rng(seed))
    limits = (room.width_m, room.height_m, room.depth_m)
    assert len(room.pieces) >= 3
    for piece in room.pieces:
        assert all(piece.box.low[k] >= -0.02 and piece.box.high[k] <= limits[k] + 0.02 for k in range(3)), piece
    for first, second in itertools.combinations(room.pieces, 2):
        shared = [
            min(first.box.high[k], second.box.high[k]) - max(first.box.low[k], second.box.low[k]) for k in range(3)
        ]
        assert min(shared) < 0.02, (first, second)


def test_lamps_hang_and_beds_stand(models: tuple[Model, ...]) -> None:
    room = furnish(draw_style(3, 0, models), "bedroom", np.random.default_rng(3))
    lamps = [piece for piece in room.pieces if piece.model.role == "ceiling_lamp"]
    beds = [piece for piece in room.pieces if piece.model.role == "bed"]
    assert lamps
    assert all(abs(lamp.box.high[1] - room.height_m) < 0.02 for lamp in lamps)
    assert beds
    assert all(bed.box.low[1] == 0 for bed in beds)


def test_styles_differ_between_buildings_and_repeat_by_seed(models: tuple[Model, ...]) -> None:
    styles = [draw_style(5, number, models) for number in range(8)]
    assert len({style.palette for style in styles}) == 8
    assert len({style.camera_height_m for style in styles}) == 8
    assert draw_style(5, 3, models) == styles[3]
    assert draw_style(6, 3, models) != styles[3]


def test_building_names_are_unique() -> None:
    assert len({building_name(number) for number in range(200)}) == 200


@pytest.mark.parametrize(
    ("name", "category", "size_m", "elevation_m", "role", "class_name"),
    [
        ("Bed", "Bedroom", (1.4, 0.9, 2.0), 0.0, "bed", "bed"),
        ("Bedside table", "Bedroom", (0.5, 0.5, 0.4), 0.0, "nightstand", "table"),
        ("Winchester sofa", "Living room", (2.3, 0.8, 0.9), 0.0, "sofa", "sofa"),
        ("Chair", "Office", (0.6, 1.0, 0.6), 0.0, "office_chair", "chair"),
        ("Coffee table", "Living room", (1.2, 0.5, 0.7), 0.0, "coffee_table", "table"),
        ("Upper cabinet", "Kitchen", (0.6, 0.7, 0.4), 1.45, "kitchen_upper", "storage"),
        ("Washing machine", "Kitchen", (0.6, 0.8, 0.6), 0.0, "washer", "appliance"),
        ("Double window 3 panes", "Doors and windows", (1.1, 2.0, 0.3), 0.3, "window", "window"),
        ("Radiator", "Miscellaneous", (1.4, 0.7, 0.2), 0.0, "radiator", "ignored"),
        ("Teapot", "Kitchen", (0.2, 0.2, 0.15), 0.0, "kitchen_object", "object"),
    ],
)
def test_roles(
    name: str, category: str, size_m: tuple[float, float, float], elevation_m: float, role: str, class_name: str
) -> None:
    found = classify(name, category, size_m, elevation_m)
    assert found is not None
    assert (found[0], CLASSES[found[1]]) == (role, class_name)


@pytest.mark.parametrize(
    ("name", "category"), [("Dog", "Characters"), ("Garage door", "Doors and windows"), ("Wall plug", "Miscellaneous")]
)
def test_what_no_room_needs_has_no_role(name: str, category: str) -> None:
    assert classify(name, category, (0.5, 0.5, 0.5), 0.0) is None


def test_every_class_id_has_a_name_and_fits_18_channels() -> None:
    assert sorted(CLASSES) == list(range(18))


def test_catalogue_reads_sizes_creators_and_licence(models: tuple[Model, ...]) -> None:
    assert len(models) == len(MODELS)
    bed = models[0]
    assert bed.size_m == (1.4, 0.6, 2.0)
    assert (bed.creator, bed.licence, bed.set_name) == ("Maker 1", "CC0 1.0", "Tiny")


@pytest.mark.parametrize(
    ("text", "short"),
    [
        ("Public domain", "CC0 1.0"),
        ("Creative Commons Attribution 3.0 Unported license  (c) Someone", "CC-BY 3.0"),
        ("Creative Commons Attribution 3.0 United States license", "CC-BY 3.0 US"),
        ("Creative Commons Attribution-NonCommercial 3.0", None),
        ("Creative Commons Attribution-ShareAlike 3.0", None),
        ("Creative Commons Attribution-NoDerivs 3.0", None),
        ("GNU General Public License", None),
        ("", None),
    ],
)
def test_only_free_licences_are_used(text: str, short: str | None) -> None:
    assert free_licence(text) == short


def test_sets_of_other_licences_are_left_out(tmp_path: Path) -> None:
    write_set(tmp_path, "Free", "Public domain", MODELS[:2])
    write_set(tmp_path, "Closed", "All rights reserved")
    assert {model.set_name for model in read_catalogue(tmp_path)} == {"Free"}
    (tmp_path / "Free.sh3f").unlink()
    with pytest.raises(CatalogueError, match="All rights reserved"):
        read_catalogue(tmp_path)


def test_an_empty_or_broken_catalogue_says_so(tmp_path: Path) -> None:
    with pytest.raises(CatalogueError, match="no furniture set"):
        read_catalogue(tmp_path)
    (tmp_path / "bad.sh3f").write_bytes(b"no zip")
    with pytest.raises(CatalogueError, match=r"bad\.sh3f"):
        read_catalogue(tmp_path)


def test_models_are_scaled_to_their_stated_size_and_stand_on_the_floor(models: tuple[Model, ...]) -> None:
    mesh = load_model(models[0])
    corners = mesh.corners.reshape(-1, 3)
    np.testing.assert_allclose(corners.min(0), [-0.7, 0, -1.0], atol=1e-6)
    np.testing.assert_allclose(corners.max(0), [0.7, 0.6, 1.0], atol=1e-6)
    textured = load_model(models[2])
    assert textured.materials[0].texture is not None


def test_a_model_that_cannot_be_read_says_which(models: tuple[Model, ...]) -> None:
    from dataclasses import replace

    with pytest.raises(ModelError, match="Tiny#m1"):
        load_model(replace(models[0], obj="tiny/none.obj"))


def test_no_apt_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CatalogueError, match="--catalogue DIR"):
        fetch_catalogue(tmp_path / "cache")


def _tool(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_the_package_is_downloaded_unpacked_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    _tool(tools, "apt-get", 'echo called >> "$CALLS"; echo deb > sweethome3d-furniture_1_all.deb')
    _tool(tools, "dpkg-deb", '/bin/mkdir -p "$3/usr/share/sweethome3d/furniture"')
    monkeypatch.setenv("PATH", str(tools))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    first = fetch_catalogue(tmp_path / "cache")
    assert first.is_dir()
    assert fetch_catalogue(tmp_path / "cache") == first
    assert (tmp_path / "calls").read_text().count("called") == 1
    assert [entry.name for entry in (tmp_path / "cache").iterdir()] == ["sweethome3d-furniture"]


def test_a_failed_download_names_apts_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    _tool(tools, "apt-get", 'echo "E: Unable to locate package" >&2; exit 100')
    _tool(tools, "dpkg-deb", "exit 0")
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(CatalogueError, match="Unable to locate package"):
        fetch_catalogue(tmp_path / "cache")
