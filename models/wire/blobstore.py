"""A directory of blobs, each under its SHA-256. What is there is whole: hashed and flushed before its rename.

    <root>/<sha256>            a whole blob
    <root>/partial/<sha256>    chunks of a blob that is still arriving, each at its place
    <root>/incoming/...        a blob being written by this or another process

A partial blob needs no record of which chunks it holds: on opening, every chunk is hashed against the reference.
That is right after any kind of crash, where a record may be newer than the data it speaks of.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path

from models.wire.chunks import (
    LIMITS,
    BlobError,
    BlobLimits,
    Ranges,
    Reception,
    Verdict,
    check_ref,
    chunk_span,
)
from models.wire.messages import BlobRef
from models.wire.topics import check_sha

#: What is read at a time, by each of the threads that do: they may be as many as there are processors, and four more.
_BLOCK_BYTES = 32 * 1024


class BlobStoreError(Exception):
    """The directory cannot do what is asked (disk full, no permission, blob gone); the text says what to do."""


@contextmanager
def _translated(doing: str) -> Iterator[None]:
    """OSError -> BlobStoreError, with what was being done."""
    try:
        yield
    except OSError as error:
        raise BlobStoreError(
            f"cannot {doing}: {error.strerror or error}; check space and permissions of the blob directory"
        ) from error


class PartialBlob:
    """A blob that is arriving. Chunks are written at their place, so a reboot costs only what was not flushed."""

    def __init__(self, path: Path, ref: BlobRef) -> None:
        self.path = path
        self.reception = Reception(ref)
        with _translated(f"open {path}"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            self._resume(os.fstat(self._file).st_size)

    def _resume(self, size_bytes: int) -> None:
        """Counts in every chunk whose bytes are already right."""
        ref = self.reception.ref
        for index in range(len(ref.chunks)):
            offset, length = chunk_span(ref, index)
            if offset >= size_bytes:
                break
            if self.reception.judge(index, os.pread(self._file, length, offset)) == "accepted":
                self.reception = self.reception.with_chunk(index)

    def accept(self, index: int, data: bytes) -> Verdict:
        """Keeps a chunk if it is right and new. Raises BlobStoreError when it cannot be written."""
        verdict = self.reception.judge(index, data)
        if verdict == "accepted":
            with _translated(f"write {self.path}"):
                _write_all(self._file, data, chunk_span(self.reception.ref, index)[0])
            self.reception = self.reception.with_chunk(index)
        return verdict

    def missing(self) -> Ranges:
        return self.reception.missing()

    @property
    def complete(self) -> bool:
        return self.reception.complete

    def flush(self) -> None:
        """Data to disk, cut to the blob's size. Blocks; not for an event loop."""
        with _translated(f"flush {self.path}"):
            os.ftruncate(self._file, self.reception.ref.size_bytes)
            os.fsync(self._file)

    def close(self) -> None:
        """May be called twice. The chunks stay on disk."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


class BlobStore:
    """Blobs of one process or of several that share `root` (on one file system). Calls block on the disk."""

    def __init__(self, root: Path, limits: BlobLimits = LIMITS) -> None:
        self.root = root
        self.limits = limits
        with _translated(f"create {root}"):
            for folder in (root, self.incoming, self._partial):
                folder.mkdir(parents=True, exist_ok=True)

    @property
    def incoming(self) -> Path:
        """What is being written; `clean_incoming` empties it."""
        return self.root / "incoming"

    @property
    def _partial(self) -> Path:
        return self.root / "partial"

    def path(self, sha256: str) -> Path:
        """Where a blob is, or would be; always inside `root`. Raises TopicError when `sha256` is no hash."""
        return self.root / check_sha(sha256)

    def has(self, sha256: str) -> bool:
        return self.path(sha256).is_file()

    def put_bytes(self, data: bytes) -> str:
        """Keeps `data` and returns its SHA-256."""
        return self._put(iter((data,)))

    def put_file(self, source: Path) -> str:
        """Keeps a copy of a file and returns its SHA-256; read in blocks, whatever its size."""
        with _translated(f"read {source}"), source.open("rb") as file:
            return self._put(iter(lambda: file.read(_BLOCK_BYTES), b""))

    def _put(self, blocks: Iterator[bytes]) -> str:
        digest = hashlib.sha256()
        with _translated(f"write into {self.root}"):
            handle, name = tempfile.mkstemp(dir=self.incoming)
            try:
                with os.fdopen(handle, "wb") as file:
                    for block in blocks:
                        digest.update(block)
                        file.write(block)
                    file.flush()
                    os.fsync(file.fileno())
                self._publish(Path(name), digest.hexdigest())
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
        return digest.hexdigest()

    def _publish(self, source: Path, sha256: str) -> Path:
        """Renames a flushed file to its hash, so that it is there whole or not at all, even after a power cut."""
        target = self.path(sha256)
        os.replace(source, target)
        _sync_directory(self.root)
        return target

    def read_chunk(self, ref: BlobRef, index: int) -> bytes:
        """One chunk of a whole blob. Raises BlobStoreError when the blob is gone, IndexError outside it."""
        offset, length = chunk_span(ref, index)
        with _translated(f"read blob {ref.sha256}"), self.path(ref.sha256).open("rb") as file:
            return os.pread(file.fileno(), length, offset)

    def open_partial(self, ref: BlobRef) -> PartialBlob:
        """What is here of a blob that is to be received; hashes whatever an earlier attempt left.

        Raises BlobError with every fault of a reference that is out of bounds.
        """
        if faults := check_ref(ref, self.limits):
            raise BlobError(faults)
        return PartialBlob(self._partial / check_sha(ref.sha256), ref)

    def finish(self, ref: BlobRef) -> Path:
        """Turns a complete partial blob into a blob; the whole is hashed first.

        Raises BlobError, and throws the partial away, when the whole has not the hash that its reference claims.
        """
        partial = self._partial / check_sha(ref.sha256)
        with _translated(f"finish blob {ref.sha256}"):
            with partial.open("r+b", buffering=0) as file:
                file.truncate(ref.size_bytes)
                found = _hash(file)
                os.fsync(file.fileno())
            if found != ref.sha256:
                partial.unlink()
                raise BlobError([f"blob {ref.sha256} hashes to {found}; its reference is wrong"])
            return self._publish(partial, ref.sha256)

    def discard(self, sha256: str) -> None:
        """Forgets a blob and whatever has arrived of it. Nothing happens if there is neither."""
        with _translated(f"discard blob {sha256}"):
            self.path(sha256).unlink(missing_ok=True)
            (self._partial / check_sha(sha256)).unlink(missing_ok=True)

    def clean_incoming(self) -> None:
        """Removes what processes that were killed while they wrote have left in `incoming`.

        Only for the one process that owns the directory, before it writes: what another writes would go as well.
        """
        with _translated(f"clean {self.incoming}"):
            for path in self.incoming.iterdir():
                path.unlink(missing_ok=True)

    def prune(self, keep: Collection[str], max_bytes: int) -> list[str]:
        """Removes the oldest files, whole or partial, until all take at most `max_bytes`; returns their names.

        Blobs in `keep` stay even when they alone take more.
        """
        with _translated(f"prune {self.root}"):
            files = [path for folder in (self.root, self._partial) for path in folder.iterdir() if path.is_file()]
            sized = sorted((path.stat().st_mtime_ns, path.name, path.stat().st_size, path) for path in files)
            excess = sum(size for _, _, size, _ in sized) - max_bytes
            removed = []
            for _, name, size, path in sized:
                if excess <= 0:
                    break
                if name not in keep:
                    path.unlink(missing_ok=True)
                    excess -= size
                    removed.append(name)
        return removed


def _hash(file: FileIO) -> str:
    """SHA-256 of what follows in a file, in one small buffer that ends with this call."""
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    while got := file.readinto(block):
        digest.update(block[:got])
    return digest.hexdigest()


def _write_all(file: int, data: bytes, offset: int) -> None:
    """pwrite may write less than asked, as on a disk that is nearly full."""
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, offset)
        view, offset = view[written:], offset + written


def _sync_directory(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
