"""Waiting things on disk: order, room, and a disk that is full."""

from __future__ import annotations

import os
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aggregator.shelf import SLOT_BYTES, Shelf


@given(
    steps=st.lists(
        st.one_of(st.none(), st.sampled_from((0, 1, 900, SLOT_BYTES - 2, SLOT_BYTES - 1, 3 * SLOT_BYTES))),
        max_size=60,
    )
)
def test_whatever_is_put_and_taken_it_comes_out_as_it_came_in_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, steps: list[int | None]
) -> None:
    shelf: Shelf[int] = Shelf(tmp_path_factory.mktemp("shelf"))
    model: list[tuple[int, bytes]] = []
    for number, size in enumerate(steps):
        if size is None:
            if model:
                assert shelf.pop() == model.pop(0)
        else:
            model.append((number, os.urandom(size)))
            shelf.put(*model[-1])
        assert len(shelf) == len(model)
        assert all((key in shelf) == (key in dict(model)) for key in range(number + 1))
    assert [shelf.pop() for _ in range(len(shelf))] == model


def test_nothing_can_be_taken_from_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="nothing waits"):
        Shelf(tmp_path).pop()


def test_slots_are_used_again_and_the_file_has_no_name(tmp_path: Path) -> None:
    shelf: Shelf[int] = Shelf(tmp_path)
    for number in range(10_000):
        shelf.put(number, b"x" * 1000)
        if number >= 5:
            shelf.pop()
    assert os.fstat(shelf._opened()).st_size <= 6 * SLOT_BYTES
    assert not list(tmp_path.iterdir())


def test_a_thousand_reports_take_little_memory(tmp_path: Path) -> None:
    keys, body = [(number,) for number in range(1000)], b"x" * 1200
    shelf: Shelf[tuple[int]] = Shelf(tmp_path)
    tracemalloc.start()
    try:
        for key in keys:
            shelf.put(key, bytes(body))
        assert tracemalloc.get_traced_memory()[0] < 1000 * 150
    finally:
        tracemalloc.stop()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf: Shelf[str] = Shelf(tmp_path)
    shelf.put("before", b"1")
    real = os.pwrite

    def full(file: int, body: bytes, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    shelf.put("raised", b"2")
    monkeypatch.setattr(os, "pwrite", lambda file, body, offset: real(file, body[:1], offset))
    shelf.put("short", b"3")
    monkeypatch.setattr(os, "pwrite", real)
    shelf.put("after", b"4")
    assert [shelf.pop() for _ in range(4)] == [("before", b"1"), ("raised", b"2"), ("short", b"3"), ("after", b"4")]


def test_a_folder_that_is_gone_loses_nothing(tmp_path: Path) -> None:
    shelf: Shelf[str] = Shelf(tmp_path / "gone")
    shelf.put("a", b"1")
    assert shelf.pop() == ("a", b"1")


def test_what_cannot_be_read_back_is_told(tmp_path: Path) -> None:
    shelf: Shelf[str] = Shelf(tmp_path)
    shelf.put("a", b"1" * 500)
    os.truncate(shelf._opened(), 100)
    with pytest.raises(OSError, match="look at the disk"):
        shelf.pop()
