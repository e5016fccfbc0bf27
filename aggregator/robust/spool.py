"""Updates of one round on disk, each a row of float32 numbers, read back a block of coordinates at a time.

The file has no name and goes with the process, however that ends: what was in it comes again from the updates' blobs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from aggregator.nameless import nameless_file
from aggregator.robust.sorting import Floats

_ITEM_BYTES = 4


class Spool:
    """Rows of `width` numbers, in a file that lives in `folder` (None: where temporary files do).

    Raises OSError when the disk is full.
    """

    def __init__(self, width: int, folder: Path | None = None) -> None:
        self.width = width
        self._file = nameless_file(self, folder)

    def write(self, row: int, pieces: Iterable[Floats]) -> None:
        """Put a row in its place, given as arrays that follow each other."""
        begins = offset = row * self.width * _ITEM_BYTES
        for piece in pieces:
            offset = self._write(np.ascontiguousarray(piece, np.float32).reshape(-1), offset)
        if offset - begins != self.width * _ITEM_BYTES:
            raise ValueError(f"a row of {(offset - begins) // _ITEM_BYTES} numbers, expected {self.width}")

    def _write(self, piece: Floats, offset: int) -> int:
        left = piece.view(np.uint8).data
        while left:
            written = os.pwrite(self._file, left, offset)
            left, offset = left[written:], offset + written
        return offset

    def read(self, rows: Iterable[int], start: int, out: Floats) -> None:
        """Fill `out` (`[rows, width]`, C order) with numbers `start`, `start + 1`, ... of each of these rows."""
        for place, row in enumerate(rows):
            left = out[place].view(np.uint8).data
            offset = (row * self.width + start) * _ITEM_BYTES
            while left:
                got = os.preadv(self._file, [left], offset)
                if not got:
                    raise OSError(f"row {row} of a round's updates is not whole; look at the disk")
                left, offset = left[got:], offset + got
