"""What does not come back the same is found, wherever it is, without a second copy of everything."""

from __future__ import annotations

import tracemalloc
from typing import Annotated, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta

from aggregator import reread
from aggregator.reread import PIECE_BYTES, Rereader


class Leaf(msgspec.Struct, frozen=True):
    number: float
    name: str = ""
    many: tuple[float, ...] = ()
    fixed: tuple[int, str] = (0, "")
    short: Annotated[str, Meta(max_length=8)] = ""


class Tree(msgspec.Struct, frozen=True):
    leaves: dict[str, Leaf] = {}
    by_number: dict[int, Leaf] = {}
    row: tuple[Leaf, ...] = ()
    maybe: tuple[Leaf, ...] | None = None
    inner: Tree | None = None


PADDING = "x" * PIECE_BYTES


def places(leaf: Leaf) -> list[Tree]:
    return [
        Tree(leaves={"a": Leaf(1.0, PADDING), "b": leaf}),
        Tree(by_number={1: Leaf(1.0, PADDING), 2: leaf}),
        Tree(row=(Leaf(1.0, PADDING), leaf)),
        Tree(maybe=(leaf, Leaf(1.0, PADDING))),
        Tree(inner=Tree(leaves={"only": leaf})),
        Tree(inner=Tree(row=(leaf,) * 3, by_number={7: leaf})),
    ]


@pytest.mark.parametrize("padding", ["", PADDING])
@pytest.mark.parametrize("place", range(6))
def test_a_fault_is_found_wherever_it_is(place: int, padding: str) -> None:
    looks = Rereader()
    assert looks.comes_back(places(Leaf(0.5, padding, (1.0,), (1, "a")))[place], Tree)
    assert not looks.comes_back(places(Leaf(float("nan"), padding))[place], Tree)
    assert not looks.comes_back(places(Leaf(0.5, padding, (float("nan"),)))[place], Tree)
    with pytest.raises(msgspec.ValidationError):
        looks.comes_back(places(Leaf(0.5, padding, short="much too long"))[place], Tree)
    with pytest.raises(msgspec.ValidationError):
        looks.comes_back(places(Leaf("a word", padding))[place], Tree)  # type: ignore[arg-type]


class Limited(msgspec.Struct, frozen=True):
    rows: Annotated[tuple[Leaf, ...], Meta(max_length=2)] = ()
    keys: dict[Annotated[str, Meta(max_length=4)], str] = {}
    leaf: Leaf | None = None


def test_limits_of_a_whole_of_keys_and_another_type_are_found() -> None:
    looks = Rereader()
    big = Leaf(1.0, PADDING)
    assert looks.comes_back(Limited(rows=(big, big), keys={"abcd": PADDING}, leaf=big), Limited)
    for wrong in (
        Limited(rows=(big, big, big)),
        Limited(keys={"abcde": PADDING}),
        Limited(keys={"abcd": PADDING, "abcde": PADDING}),
    ):
        with pytest.raises(msgspec.ValidationError):
            looks.comes_back(wrong, Limited)
    with pytest.raises(msgspec.ValidationError):
        looks.comes_back(Limited(leaf=Tree(row=(big,))), Limited)  # type: ignore[arg-type]


leaves = st.builds(Leaf, number=st.floats(allow_nan=True), name=st.text(max_size=5), many=st.just((0.0, 1.0)))


@given(
    tree=st.recursive(
        st.builds(Tree, leaves=st.dictionaries(st.text(max_size=3), leaves, max_size=4)),
        lambda inner: st.builds(
            Tree,
            by_number=st.dictionaries(st.integers(0, 9), leaves, max_size=3),
            row=st.lists(leaves, max_size=3).map(tuple),
            inner=st.none() | inner,
        ),
        max_leaves=4,
    ),
    piece=st.sampled_from((1, 20, 100, 10**6)),
)
def test_the_size_of_a_piece_changes_no_verdict(tree: Tree, piece: int) -> None:
    whole = msgspec.msgpack.decode(msgspec.msgpack.encode(tree), type=Tree) == tree
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reread, "PIECE_BYTES", piece)
        assert Rereader().comes_back(tree, Tree) is whole


def test_no_second_copy_is_made() -> None:
    tree = Tree(leaves={f"{number:06}": Leaf(1.0, many=(0.5,) * 4) for number in range(20_000)})
    looks = Rereader()

    def most(work: Any) -> int:
        tracemalloc.start()
        try:
            work()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    body = len(msgspec.msgpack.encode(tree))
    assert most(lambda: looks.comes_back(tree, Tree)) < 2 * body
    assert most(lambda: msgspec.msgpack.decode(msgspec.msgpack.encode(tree), type=Tree)) > 3 * body
