"""The order of blocks: balanced over places and followers, random by seed, stable when repeats are added."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from tools.energy.order import blocks, williams


@pytest.mark.parametrize("count", [2, 3, 4, 5, 6])
def test_every_scheme_is_everywhere_equally_often_and_follows_every_other_equally_often(count: int) -> None:
    rows = williams(count)
    places = Counter((place, scheme) for row in rows for place, scheme in enumerate(row))
    follows = Counter(pair for row in rows for pair in itertools.pairwise(row))
    assert len(places) == count * count
    assert len(set(places.values())) == 1
    assert len(follows) == count * (count - 1)
    assert len(set(follows.values())) == 1


def test_each_repeat_has_every_scheme_once() -> None:
    found = blocks(["a", "b", "c"], 7, seed=3)
    assert len(found) == 21
    for repeat in range(7):
        mine = [slot for slot in found if slot.repeat == repeat]
        assert sorted(slot.scheme for slot in mine) == ["a", "b", "c"]
        assert [slot.position for slot in mine] == [0, 1, 2]


def test_the_order_is_the_seeds_and_more_repeats_leave_the_first_ones_alone() -> None:
    few = blocks(["a", "b", "c", "d"], 5, seed=1)
    assert blocks(["a", "b", "c", "d"], 9, seed=1)[: len(few)] == few
    assert any(blocks(["a", "b", "c", "d"], 5, seed=other) != few for other in range(2, 6))


def test_folders_sort_as_blocks_ran() -> None:
    names = [slot.folder for slot in blocks(["b", "a"], 12, seed=0)]
    assert names == sorted(names)
    assert len(set(names)) == 24
