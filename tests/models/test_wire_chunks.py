from __future__ import annotations

import hashlib
import itertools
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.wire.chunks import (
    BlobError,
    BlobLimits,
    Reception,
    check_ref,
    chunk_span,
    from_ranges,
    make_ref,
    to_ranges,
)
from models.wire.messages import BlobRef

SMALL = BlobLimits(max_blob_bytes=64 * 1024, max_chunks=32, max_chunk_bytes=4096)


def piece(data: bytes, ref: BlobRef, index: int) -> bytes:
    offset, length = chunk_span(ref, index)
    return data[offset : offset + length]


@pytest.mark.parametrize("size, lengths", [(0, []), (1, [1]), (1024, [1024]), (1025, [1024, 1]), (2048, [1024, 1024])])
def test_a_reference_of_bytes_and_of_a_file_are_the_same(size: int, lengths: list[int], tmp_path: Path) -> None:
    data = random.Random(size).randbytes(size)
    (tmp_path / "blob").write_bytes(data)
    ref = make_ref(data, 1024)
    assert ref == make_ref(tmp_path / "blob", 1024)
    assert (ref.sha256, ref.size_bytes) == (hashlib.sha256(data).hexdigest(), size)
    assert [chunk_span(ref, index)[1] for index in range(len(ref.chunks))] == lengths
    assert [hashlib.sha256(piece(data, ref, i)).digest() for i in range(len(lengths))] == list(ref.chunks)
    assert check_ref(ref) == []


def test_a_chunk_outside_the_blob() -> None:
    ref = make_ref(b"x" * 1500, 1024)
    for index in (-1, 2):
        with pytest.raises(IndexError):
            chunk_span(ref, index)


@pytest.mark.parametrize("size, fault", [(64 * 1024 + 1, "at most 65536"), (33 * 1024, "at most 32 are")])
def test_a_source_beyond_the_limits_is_not_read_to_its_end(size: int, fault: str, tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(bytes(size))
    with pytest.raises(BlobError, match=fault):
        make_ref(tmp_path / "blob", 1024 if "32" in fault else 4096, SMALL)


def test_every_fault_of_a_reference_at_once() -> None:
    ref = BlobRef("ab" * 32, 10**9, 8192, (b"\x00" * 32,) * 40)
    faults = check_ref(ref, SMALL)
    assert len(faults) == 3
    assert "1000000000 bytes" in faults[0]
    assert "40 chunks" in faults[1]
    assert "8192 bytes" in faults[2]


@pytest.mark.parametrize("size, hashes", [(1024, 0), (1024, 2), (0, 1), (1025, 1)])
def test_a_reference_whose_hashes_do_not_make_up_its_size(size: int, hashes: int) -> None:
    (fault,) = check_ref(BlobRef("ab" * 32, size, 1024, (b"\x00" * 32,) * hashes), SMALL)
    assert f"{hashes} hashes" in fault


@given(st.sets(st.integers(0, 60)))
def test_ranges_hold_exactly_the_indices(indices: set[int]) -> None:
    ranges = to_ranges(indices)
    assert from_ranges(ranges, 61) == indices
    assert all(start < stop for start, stop in ranges)
    assert all(left[1] < right[0] for left, right in itertools.pairwise(ranges))


def test_ranges_of_a_stranger_cost_nothing() -> None:
    assert from_ranges(((3, 10**18), (5, 2), (0, 1)), 6) == {0, 3, 4, 5}


@settings(max_examples=60, deadline=None)
@given(
    size=st.integers(0, 9000),
    arrivals=st.lists(st.tuples(st.integers(-1, 10), st.sampled_from(["good", "bad", "short", "swapped"]))),
)
def test_reassembly_yields_the_blob_or_names_what_is_missing(size: int, arrivals: list[tuple[int, str]]) -> None:
    """In any order, with repetitions and damage: what is kept is right, and what is missing is asked, nothing else."""
    data = random.Random(size).randbytes(size)
    ref = make_ref(data, 1024)
    kept: dict[int, bytes] = {}
    reception = Reception(ref)
    for index, damage in arrivals:
        inside = 0 <= index < len(ref.chunks)
        good = piece(data, ref, index) if inside else b"anything"
        sent = {
            "good": good,
            "bad": bytes((good[0] ^ 1,)) + good[1:],
            "short": good[:-1],
            "swapped": piece(data, ref, (index + 1) % len(ref.chunks)) if inside else b"",
        }[damage]
        verdict = reception.judge(index, sent)
        if not inside:
            assert verdict == "out of range"
        elif index in kept:
            assert verdict == "duplicate"
        else:
            assert verdict == ("accepted" if sent == good else "wrong hash")
        if verdict == "accepted":
            kept[index] = sent
            reception = reception.with_chunk(index)
    expected = set(range(len(ref.chunks))) - set(kept)
    assert from_ranges(reception.missing(), len(ref.chunks)) == expected
    assert reception.complete == (not expected)
    assert reception.arrived == len(kept)
    for index in expected:  # a second round brings exactly what was asked
        assert reception.judge(index, piece(data, ref, index)) == "accepted"
        kept[index] = piece(data, ref, index)
        reception = reception.with_chunk(index)
    assert reception.complete
    assert b"".join(kept[index] for index in sorted(kept)) == data
