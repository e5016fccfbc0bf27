"""`mas data`: exit codes, JSON, and that nothing heavy is imported before it is needed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_furniture import write_set
from typer.testing import CliRunner

from tools.cli.data import app

RUN = CliRunner()
SCENES = [
    "--buildings",
    "1",
    "--test-buildings",
    "0",
    "--points",
    "1",
    "--views",
    "1",
    "--size",
    "16",
    "--workers",
    "1",
]


def album(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (50, 50, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_scenes_photos_and_check_end_to_end(tmp_path: Path) -> None:
    furniture = write_set(tmp_path / "furniture")
    rooms = RUN.invoke(app, ["scenes", str(tmp_path / "rooms"), *SCENES, "--catalogue", str(furniture), "--json"])
    assert rooms.exit_code == 0, rooms.output
    summary = json.loads(rooms.stdout)
    assert summary["images"] == summary["written"] == 1
    assert summary["images_per_s"] > 0
    pictures = album(tmp_path / "album", 4)
    (pictures / "bad.jpg").write_text("x")
    cut = RUN.invoke(
        app,
        ["photos", str(pictures), str(tmp_path / "photos"), "--clients", "1", "--size", "16", "--crops", "2", "--json"],
    )
    assert cut.exit_code == 0, cut.output
    made = json.loads(cut.stdout)
    assert made["photos"] == 4
    assert made["images"] == 8
    assert made["skipped"] == ["bad.jpg: not an image"]
    for root, tasks in ((tmp_path / "rooms", "sdnkt"), (tmp_path / "photos", "atkov")):
        checked = RUN.invoke(app, ["check", str(root), "--tasks", tasks, "--json"])
        assert checked.exit_code == 0, checked.output
        assert json.loads(checked.stdout) == {"root": str(root), "ok": True, "faults": []}


def test_faults_are_exit_1_and_usage_is_2(tmp_path: Path) -> None:
    furniture = write_set(tmp_path / "furniture")
    out = tmp_path / "rooms"
    assert RUN.invoke(app, ["scenes", str(out), *SCENES, "--catalogue", str(furniture)]).exit_code == 0
    next((out / "normal").rglob("*.png")).unlink()
    checked = RUN.invoke(app, ["check", str(out)])
    assert checked.exit_code == 1
    assert "domain_normal.png: missing" in checked.stdout
    listed = RUN.invoke(app, ["check", str(out), "--tasks", "v", "--json"])
    assert listed.exit_code == 1
    assert {fault["reason"] for fault in json.loads(listed.stdout)["faults"]} == {"missing", "missing domain"}
    assert RUN.invoke(app, ["check", str(out), "--tasks", "xyz"]).exit_code == 2
    assert RUN.invoke(app, ["check"]).exit_code == 2
    assert RUN.invoke(app, ["scenes", str(tmp_path / "new"), "--size", "4"]).exit_code == 2
    assert RUN.invoke(app, ["photos", str(tmp_path), str(tmp_path / "new"), "--clients", "0"]).exit_code == 2


def test_expected_errors_are_one_line_and_exit_1(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    rooms = RUN.invoke(app, ["scenes", str(tmp_path / "a"), *SCENES, "--catalogue", str(tmp_path / "none")])
    cut = RUN.invoke(app, ["photos", str(tmp_path / "none"), str(tmp_path / "b")])
    for result, words in ((rooms, "no furniture set"), (cut, "no photographs under")):
        assert result.exit_code == 1
        assert words in result.stderr
        assert "Traceback" not in result.output


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tools.scenes.dataset as dataset

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(dataset, "write_scenes", interrupted)
    furniture = write_set(tmp_path / "furniture")
    result = RUN.invoke(app, ["scenes", str(tmp_path / "rooms"), *SCENES, "--catalogue", str(furniture)])
    assert result.exit_code == 130
    assert "run the same command again" in result.stderr


def test_the_sub_command_is_light_to_import() -> None:
    heavy = ("trimesh", "embreex", "torch", "PIL", "numpy")
    code = f"import sys, tools.cli.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_names_what_a_job_would_stumble_over(tmp_path: Path) -> None:
    for building in ("ash", "elm"):
        for domain, pixels in (
            ("rgb", np.zeros((16, 16, 3), np.uint8)),
            ("edge_texture", np.zeros((16, 16), np.uint16)),
        ):
            folder = tmp_path / domain / building
            folder.mkdir(parents=True)
            for point in range(4):
                Image.fromarray(pixels).save(folder / f"point_{point}_view_0_domain_{domain}.png")
    (tmp_path / "edge_texture" / "elm" / "point_2_view_0_domain_edge_texture.png").write_text("x")
    listed = RUN.invoke(app, ["check", str(tmp_path), "--tasks", "tdp", "--batch-size", "5", "--json"])
    assert listed.exit_code == 1
    found = [
        (Path(fault["path"]).relative_to(tmp_path).parts[0], fault["reason"])
        for fault in json.loads(listed.stdout)["faults"]
    ]
    assert {reason for domain, reason in found if domain in ("depth_zbuffer", "class_scene")} == {"missing domain"}
    assert ("edge_texture", "not an image") in found
    assert sum("fewer than a batch of 5" in reason for _, reason in found) == 2
    assert RUN.invoke(app, ["check", str(tmp_path), "--tasks", "t", "--buildings", "ash"]).exit_code == 0
    assert RUN.invoke(app, ["check", str(tmp_path), "--tasks", "t", "--quick"]).exit_code == 0
    absent = RUN.invoke(app, ["check", str(tmp_path), "--tasks", "t", "--buildings", "ash, oak"])
    assert absent.exit_code == 1
    assert "oak: missing building" in absent.stdout
    assert "no data format" in RUN.invoke(app, ["check", str(tmp_path), "--format", "zip"]).stdout


def test_the_bar_of_a_long_check_stays_off_the_faults(tmp_path: Path) -> None:
    (tmp_path / "rgb" / "ash").mkdir(parents=True)
    (tmp_path / "rgb" / "ash" / "point_0_view_0_domain_rgb.png").write_text("x")
    checked = RUN.invoke(app, ["check", str(tmp_path)])
    assert checked.stdout == f"{tmp_path / 'rgb' / 'ash' / 'point_0_view_0_domain_rgb.png'}: not an image\n"
    assert "1/1" in checked.stderr
