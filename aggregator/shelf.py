"""What waits for its turn, on disk: in memory a thousand reports would take a megabyte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Generic, TypeVar

from aggregator.nameless import nameless_file

K = TypeVar("K")
#: Nearly all reports are smaller. The file has a slot for as many as have ever waited at a time.
SLOT_BYTES = 4096
_LENGTH_BYTES = 2


class Shelf(Generic[K]):
    """Bytes by key, first come first served.

    The file is in `folder`, has no name and goes with the process, however that ends. What is larger than a slot, or
    cannot be written, waits in memory. Raises OSError when what was written cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: int | None = None
        #: The number of a slot, or what waits itself.
        self._waiting: dict[K, int | bytes] = {}
        self._free: list[int] = []
        self._slots = 0

    def __contains__(self, key: object) -> bool:
        return key in self._waiting

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, key: K, body: bytes) -> None:
        """Put something behind all others. Its key must not wait already."""
        slot = self._free.pop() if self._free else self._slots
        self._slots = max(self._slots, slot + 1)
        if len(body) <= SLOT_BYTES - _LENGTH_BYTES and self._written(slot, body):
            self._waiting[key] = slot
        else:
            self._free.append(slot)
            self._waiting[key] = body

    def _written(self, slot: int, body: bytes) -> bool:
        """Whether something is on the disk, as it is not where that is full."""
        whole = len(body).to_bytes(_LENGTH_BYTES, "big") + body
        try:
            return os.pwrite(self._opened(), whole, slot * SLOT_BYTES) == len(whole)
        except OSError:
            return False

    def _opened(self) -> int:
        if self._file is None:
            self._file = nameless_file(self, self._folder)
        return self._file

    def pop(self) -> tuple[K, bytes]:
        """What has waited longest, with its key. Raises KeyError when nothing waits."""
        if not self._waiting:
            raise KeyError("nothing waits")
        key = next(iter(self._waiting))
        at = self._waiting.pop(key)
        if isinstance(at, bytes):
            return key, at
        self._free.append(at)
        found = os.pread(self._opened(), SLOT_BYTES, at * SLOT_BYTES)
        length = int.from_bytes(found[:_LENGTH_BYTES], "big")
        body = found[_LENGTH_BYTES : _LENGTH_BYTES + length]
        if len(body) != length:
            raise OSError("a file of this process's own has lost what was written to it; look at the disk")
        return key, body
