from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from models.wire.blobstore import BlobStore, BlobStoreError
from models.wire.chunks import BlobError, BlobLimits, chunk_span, make_ref
from models.wire.messages import BlobRef
from models.wire.topics import TopicError

DATA = random.Random(1).randbytes(10_000)
REF = make_ref(DATA, 1024)


def piece(index: int) -> bytes:
    offset, length = chunk_span(REF, index)
    return DATA[offset : offset + length]


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


def leftovers(store: BlobStore) -> list[Path]:
    return [path for path in store.root.rglob("*") if path.is_file() and path.name != REF.sha256]


def test_bytes_and_files_are_kept_under_their_hash(store: BlobStore, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(DATA)
    assert not store.has(REF.sha256)
    assert store.put_file(tmp_path / "source") == store.put_bytes(DATA) == REF.sha256
    assert store.has(REF.sha256)
    assert store.path(REF.sha256).read_bytes() == DATA
    assert b"".join(store.read_chunk(REF, index) for index in range(len(REF.chunks))) == DATA
    assert leftovers(store) == []


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "AB" * 32, "a" * 63, "/" + "a" * 63])
def test_a_name_never_leaves_the_directory(store: BlobStore, name: str) -> None:
    for call in (store.path, store.has, store.discard):
        with pytest.raises(TopicError):
            call(name)
    with pytest.raises(TopicError):
        store.open_partial(BlobRef(name, 0, 1024, ()))


def test_chunks_in_any_order_become_the_blob(store: BlobStore) -> None:
    partial = store.open_partial(REF)
    for index in reversed(range(len(REF.chunks))):
        assert not partial.complete
        assert partial.accept(index, piece(index)) == "accepted"
    assert partial.complete
    assert not store.has(REF.sha256)
    partial.close()
    assert store.finish(REF) == store.path(REF.sha256)
    assert store.path(REF.sha256).read_bytes() == DATA
    assert leftovers(store) == []


def test_bad_chunks_leave_no_trace(store: BlobStore) -> None:
    partial = store.open_partial(REF)
    assert partial.accept(0, piece(1)) == "wrong hash"
    assert partial.accept(0, piece(0) + b"x") == "wrong hash"
    assert partial.accept(10, b"") == "out of range"
    assert partial.accept(0, piece(0)) == "accepted"
    assert partial.accept(0, piece(0)) == "duplicate"
    assert partial.missing() == ((1, 10),)
    partial.close()
    partial.close()


def test_a_reboot_keeps_what_is_right_on_disk(store: BlobStore) -> None:
    partial = store.open_partial(REF)
    for index in (0, 3, 4, 9):
        partial.accept(index, piece(index))
    path = partial.path
    partial.close()
    with path.open("r+b") as file:  # as after a power cut: one chunk's data never reached the disk
        file.seek(3 * 1024)
        file.write(bytes(1024))
    resumed = BlobStore(store.root).open_partial(REF)
    assert resumed.missing() == ((1, 4), (5, 9))
    for index in (1, 2, 3, 5, 6, 7, 8):
        assert resumed.accept(index, piece(index)) == "accepted"
    resumed.close()
    assert store.finish(REF).read_bytes() == DATA


def test_an_empty_blob_is_complete_at_once(store: BlobStore) -> None:
    empty = make_ref(b"")
    partial = store.open_partial(empty)
    assert partial.complete
    partial.close()
    assert store.finish(empty).read_bytes() == b""


def test_garbage_beyond_the_end_is_cut_off(store: BlobStore) -> None:
    partial = store.open_partial(REF)
    with partial.path.open("wb") as file:
        file.write(DATA + b"what another reference of the same name once wrote")
    partial.close()
    resumed = store.open_partial(REF)
    assert resumed.complete
    resumed.close()
    assert store.finish(REF).read_bytes() == DATA


def test_a_reference_that_contradicts_itself(store: BlobStore) -> None:
    """Each chunk is as promised, and the whole is not: the blob is not kept, nor its parts."""
    liar = BlobRef(hashlib.sha256(b"something else").hexdigest(), REF.size_bytes, REF.chunk_bytes, REF.chunks)
    partial = store.open_partial(liar)
    for index in range(len(REF.chunks)):
        assert partial.accept(index, piece(index)) == "accepted"
    partial.close()
    with pytest.raises(BlobError, match="reference is wrong"):
        store.finish(liar)
    assert not store.has(liar.sha256)
    assert leftovers(store) == []


def test_a_reference_out_of_bounds_touches_nothing(tmp_path: Path) -> None:
    store = BlobStore(tmp_path, BlobLimits(max_blob_bytes=5000))
    with pytest.raises(BlobError, match="10000 bytes"):
        store.open_partial(REF)
    assert leftovers(store) == []


def test_discard_forgets_whole_and_partial(store: BlobStore) -> None:
    store.put_bytes(DATA)
    store.open_partial(REF).close()
    store.discard(REF.sha256)
    store.discard(REF.sha256)
    assert [path for path in store.root.rglob("*") if path.is_file()] == []


def test_prune_removes_the_oldest_first_and_keeps_what_it_must(store: BlobStore) -> None:
    blobs = [store.put_bytes(bytes((n,)) * 1000) for n in range(5)]
    for age, sha in enumerate(reversed(blobs)):
        os.utime(store.path(sha), ns=(10**18 - age, 10**18 - age))
    assert store.prune([], 5000) == []
    assert store.prune([blobs[0]], 3000) == [blobs[1], blobs[2]]
    assert store.prune(blobs, 0) == []
    assert [sha for sha in blobs if store.has(sha)] == [blobs[0], blobs[3], blobs[4]]


def test_prune_counts_and_removes_partials(store: BlobStore) -> None:
    partial = store.open_partial(REF)
    partial.accept(9, piece(9))
    partial.close()
    assert store.prune([REF.sha256], 0) == []
    assert store.prune([], 0) == [REF.sha256]
    assert leftovers(store) == []


def test_what_a_killed_process_was_writing_is_cleaned_away_and_nothing_else(
    store: BlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = store.put_bytes(b"whole")
    partial = store.open_partial(REF)
    partial.accept(9, piece(9))
    partial.close()
    with monkeypatch.context() as killed:  # before it could rename or remove what it wrote
        killed.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        killed.setattr(Path, "unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            store.put_bytes(b"half")
    assert len(list((store.root / "incoming").iterdir())) == 1
    store.clean_incoming()
    assert list((store.root / "incoming").iterdir()) == []
    assert store.has(whole)
    assert (store.root / "partial" / REF.sha256).is_file()


def test_a_blob_that_is_gone(store: BlobStore) -> None:
    with pytest.raises(BlobStoreError, match="No such file"):
        store.read_chunk(REF, 0)
    with pytest.raises(BlobStoreError, match="No such file"):
        store.finish(REF)


def test_a_directory_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BlobStoreError, match="space and permissions"):
        BlobStore(tmp_path / "file" / "blobs")


def test_a_full_disk_is_an_error_that_says_so(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    partial = store.open_partial(REF)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(BlobStoreError, match="No space left"):
            partial.accept(0, piece(0))
        patch.setattr(os, "fsync", full)
        with pytest.raises(BlobStoreError, match="No space left"):
            store.put_bytes(DATA)
    assert partial.missing() == ((0, 10),)
    partial.close()
    assert not store.has(REF.sha256)
    assert leftovers(store) == []
