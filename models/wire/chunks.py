"""Blobs in chunks, as pure functions and values: making a reference, judging what arrives, saying what is missing.

Each chunk has its own SHA-256 in the BlobRef, so a bad chunk is known when it arrives and only that one is asked again.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Literal

from models.wire.messages import BlobRef

CHUNK_BYTES = 128 * 1024

Verdict = Literal["accepted", "duplicate", "wrong hash", "out of range"]
#: Half-open ranges of chunk indices, ascending and apart.
Ranges = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class BlobLimits:
    """What a blob may measure. A received BlobRef is checked against this before anything is allocated."""

    max_blob_bytes: int = 256 * 1024 * 1024
    max_chunks: int = 2048
    max_chunk_bytes: int = 256 * 1024


LIMITS = BlobLimits()


class BlobError(ValueError):
    """A blob or its reference that cannot be used; `faults` holds one line for each reason."""

    def __init__(self, faults: Iterable[str]) -> None:
        self.faults = tuple(faults)
        super().__init__("; ".join(self.faults))


def make_ref(source: bytes | Path, chunk_bytes: int = CHUNK_BYTES, limits: BlobLimits = LIMITS) -> BlobRef:
    """Reference of a blob in memory or in a file, read once and in chunks.

    Raises BlobError when it is beyond the limits, or the file's OSError.
    """
    if isinstance(source, bytes):
        return _read_ref(io.BytesIO(source), chunk_bytes, limits)
    with source.open("rb") as file:
        return _read_ref(file, chunk_bytes, limits)


def _read_ref(file: BinaryIO, chunk_bytes: int, limits: BlobLimits) -> BlobRef:
    whole, size = hashlib.sha256(), 0
    hashes: list[bytes] = []
    # One chunk too many is read at most, so that an endless file is refused as well.
    while len(hashes) <= limits.max_chunks and size <= limits.max_blob_bytes:
        chunk = file.read(chunk_bytes)
        if not chunk:
            break
        whole.update(chunk)
        size += len(chunk)
        hashes.append(hashlib.sha256(chunk).digest())
    ref = BlobRef(whole.hexdigest(), size, chunk_bytes, tuple(hashes))
    if faults := check_ref(ref, limits):
        raise BlobError(faults)
    return ref


def check_ref(ref: BlobRef, limits: BlobLimits = LIMITS) -> list[str]:
    """Everything that is wrong with a reference; empty when it may be fetched."""
    faults = []
    if ref.size_bytes > limits.max_blob_bytes:
        faults.append(f"the blob has {ref.size_bytes} bytes or more, at most {limits.max_blob_bytes} are allowed")
    if len(ref.chunks) > limits.max_chunks:
        faults.append(f"the blob has {len(ref.chunks)} chunks or more, at most {limits.max_chunks} are allowed")
    if ref.chunk_bytes > limits.max_chunk_bytes:
        faults.append(f"chunks of {ref.chunk_bytes} bytes, at most {limits.max_chunk_bytes} are allowed")
    wanted = -(-ref.size_bytes // ref.chunk_bytes)
    if not faults and len(ref.chunks) != wanted:
        faults.append(f"{ref.size_bytes} bytes make {wanted} chunks, but {len(ref.chunks)} hashes are given")
    return faults


def chunk_span(ref: BlobRef, index: int) -> tuple[int, int]:
    """(offset, length) in bytes of one chunk. Raises IndexError outside the blob."""
    if not 0 <= index < len(ref.chunks):
        raise IndexError(f"chunk {index} of a blob of {len(ref.chunks)}")
    offset = index * ref.chunk_bytes
    return offset, min(ref.chunk_bytes, ref.size_bytes - offset)


def to_ranges(indices: Iterable[int]) -> Ranges:
    """Chunk indices, in any order -> the fewest half-open ranges that hold exactly those."""
    ranges: list[tuple[int, int]] = []
    for index in sorted(set(indices)):
        if ranges and ranges[-1][1] == index:
            ranges[-1] = (ranges[-1][0], index + 1)
        else:
            ranges.append((index, index + 1))
    return tuple(ranges)


def from_ranges(ranges: Iterable[tuple[int, int]], count: int) -> set[int]:
    """The indices that lie in `ranges` and below `count`; what lies outside the blob is left out, however far."""
    return {index for start, stop in ranges for index in range(max(start, 0), min(stop, count))}


@dataclass(frozen=True, slots=True)
class Reception:
    """What of a blob has arrived. `have` is a bit mask: bit i is set when chunk i is here."""

    ref: BlobRef
    have: int = 0

    def judge(self, index: int, data: bytes) -> Verdict:
        """What to do with a chunk that arrived; only an "accepted" one is to be kept and then `with_chunk`."""
        if not 0 <= index < len(self.ref.chunks):
            return "out of range"
        if self.have >> index & 1:
            return "duplicate"
        if hashlib.sha256(data).digest() != self.ref.chunks[index]:
            return "wrong hash"
        return "accepted"

    def with_chunk(self, index: int) -> Reception:
        """The same with chunk `index` here."""
        return replace(self, have=self.have | 1 << index)

    @property
    def complete(self) -> bool:
        return self.have == (1 << len(self.ref.chunks)) - 1

    @property
    def arrived(self) -> int:
        """How many chunks are here."""
        return bin(self.have).count("1")

    def missing(self) -> Ranges:
        """What to ask for."""
        return to_ranges(index for index in range(len(self.ref.chunks)) if not self.have >> index & 1)
