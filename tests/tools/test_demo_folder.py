"""The demo's folder: other people's files are never in danger."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.demo.folder import FolderTakenError, own_folder


def test_a_new_folder_is_made_and_used_again(tmp_path: Path) -> None:
    for _ in range(2):
        with own_folder(tmp_path / "out", None):
            (tmp_path / "out" / "report.html").write_text("x")


def test_a_folder_with_other_things_is_refused_and_kept(tmp_path: Path) -> None:
    (tmp_path / "photographs").mkdir()
    (tmp_path / "photographs" / "mine.jpg").write_bytes(b"x")
    with pytest.raises(FolderTakenError, match="other things"), own_folder(tmp_path, None):
        pass
    assert (tmp_path / "photographs" / "mine.jpg").exists()
    with pytest.raises(FolderTakenError, match="no folder"), own_folder(tmp_path / "photographs" / "mine.jpg", None):
        pass


@pytest.mark.parametrize("out, photos", [("a/out", "a"), ("a", "a/photographs"), ("a", "a")])
def test_photographs_and_the_folder_must_lie_apart(tmp_path: Path, out: str, photos: str) -> None:
    (tmp_path / photos).mkdir(parents=True)
    with pytest.raises(FolderTakenError, match="lie in each other"), own_folder(tmp_path / out, tmp_path / photos):
        pass


def test_two_demos_do_not_share_a_folder(tmp_path: Path) -> None:
    refused = pytest.raises(FolderTakenError, match="another demo")
    with own_folder(tmp_path / "out", None), refused, own_folder(tmp_path / "out", None):
        pass
    with own_folder(tmp_path / "out", None):
        pass
