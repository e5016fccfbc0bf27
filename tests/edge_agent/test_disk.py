"""Room on the disk: what goes to make it, what is refused without it, and state directories that cannot be used."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent import disk, state_dir
from edge_agent.disk import Disk, bytes_for, let_go
from edge_agent.kept import Finished, FinishedFiles
from edge_agent.state_dir import StateDirError, check_version, prepare
from models.wire.blobstore import BlobStore
from models.wire.chunks import make_ref
from models.wire.job import TrainSettings
from models.wire.messages import BundleFile, DeployOrder, EvaluateOrder, OrderKey, TrainOrder, TrainReport

BASE = b"m" * 100
KEY = OrderKey("job", "merged", 0, "pi", 0, "train")
TRAIN = TrainOrder(KEY, ("normal",), "pi", 32, make_ref(BASE), 0, TrainSettings(), 0, "fp32", 0.1, 60.0)
EVALUATE = EvaluateOrder(KEY, ("normal",), "pi", 32, make_ref(BASE), 4, 0.1, 60.0)
DEPLOY = DeployOrder(KEY, make_ref(b"{}"), (BundleFile("model.onnx", make_ref(b"onnx")),), 60.0)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "blobs")


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch, store: BlobStore) -> SimpleNamespace:
    """A file system of 1000 bytes, of which `others` are taken by others and the rest by the store's blobs."""
    told = SimpleNamespace(others=0)

    def statvfs(path: Path) -> SimpleNamespace:
        taken = sum(each.stat().st_size for each in path.rglob("*") if each.is_file())
        return SimpleNamespace(f_frsize=1, f_blocks=1000, f_bavail=1000 - told.others - taken)

    monkeypatch.setattr(disk.os, "statvfs", statvfs)
    return told


def test_an_order_takes_what_is_not_here_yet_and_what_comes_of_it(store: BlobStore) -> None:
    assert [bytes_for(order, store) for order in (TRAIN, EVALUATE, DEPLOY)] == [400, 100, 12]
    store.put_bytes(BASE)
    store.put_bytes(b"onnx")
    assert [bytes_for(order, store) for order in (TRAIN, EVALUATE, DEPLOY)] == [300, 0, 8]


def test_an_order_that_fits_is_not_refused_and_nothing_goes(store: BlobStore, free: SimpleNamespace) -> None:
    old = store.put_bytes(b"old")
    free.others = 1000 - 400 - 50 - 3
    assert Disk(store, 500, 50).refusal(TRAIN, ()) is None
    assert store.has(old)


def test_room_is_made_of_what_can_be_fetched_again(store: BlobStore, free: SimpleNamespace) -> None:
    old, update, base = store.put_bytes(b"o" * 200), store.put_bytes(b"u" * 100), store.put_bytes(BASE)
    free.others = 1000 - 300 - 50 - 200
    assert Disk(store, 500, 50).refusal(TRAIN, (update,)) is None
    assert [store.has(each) for each in (old, update, base)] == [False, True, True]


def test_an_order_without_room_is_refused_and_a_later_one_with_room_is_not(
    store: BlobStore, free: SimpleNamespace
) -> None:
    free.others = 1000 - 400 - 49
    refused = Disk(store, 500, 50).refusal(TRAIN, ())
    assert refused is not None
    assert (refused.key, refused.final, refused.declined) == (KEY, False, None)
    assert refused.reason.startswith("the disk is full: 1 bytes are lacking of 400 for this order and 50 to be left")
    free.others = 0
    assert Disk(store, 500, 50).refusal(TRAIN, ()) is None


def test_the_store_is_kept_small_and_on_a_full_disk_empty(store: BlobStore, free: SimpleNamespace) -> None:
    one, two, update = (store.put_bytes(letter * 100) for letter in (b"1", b"2", b"u"))
    os.utime(store.path(one), ns=(1, 1))
    Disk(store, 200, 50).tidy((update,))
    assert [store.has(each) for each in (one, two, update)] == [False, True, True]
    free.others = 780
    Disk(store, 200, 50).tidy((update,))
    assert [store.has(each) for each in (one, two, update)] == [False, False, True]


def test_without_a_number_a_part_of_the_disk_stays_free(store: BlobStore, free: SimpleNamespace) -> None:
    assert Disk(store, 500, 0).spare() == 20
    assert Disk(store, 500, 7).spare() == 7


def test_a_disk_that_cannot_be_looked_at_refuses(store: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_: Path) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(disk.os, "statvfs", gone)
    refused = Disk(store, 500, 0).refusal(TRAIN, ())
    assert refused is not None
    assert "Input/output error" in refused.reason


def test_at_a_start_on_a_full_disk_only_what_is_nowhere_else_stays(tmp_path: Path, store: BlobStore) -> None:
    base, update = store.put_bytes(BASE), store.put_bytes(b"update")
    (store.root / "partial" / base).write_bytes(b"half")
    (store.root / "incoming" / "tmp1").write_bytes(b"half")
    report = TrainReport(KEY, make_ref(b"update"), 1, (), None, (), 0, (), 6, 0, 1.0)
    FinishedFiles(tmp_path).write(Finished(TRAIN, report))
    let_go(tmp_path)
    assert [path.name for path in sorted(store.root.rglob("*")) if path.is_file()] == [update]
    let_go(tmp_path / "new")


# --- the state directory ---------------------------------------------------------------------------------------------


def test_a_new_directory_gets_its_version_and_an_old_one_keeps_it(tmp_path: Path) -> None:
    check_version(tmp_path)
    prepare(tmp_path, pytest.fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"format": "1\n"}
    check_version(tmp_path)
    prepare(tmp_path, pytest.fail)


@pytest.mark.parametrize("said", ["2\n", "1.5", "", "\xff"])
def test_a_newer_releases_directory_is_not_touched(tmp_path: Path, said: str) -> None:
    (tmp_path / "format").write_bytes(said.encode("latin-1"))
    with pytest.raises(StateDirError, match=r"of format|cannot be read"):
        check_version(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["format"]


def test_a_full_directory_is_tried_again_when_room_was_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[bool] = []

    def fsync(_: int) -> None:
        if not made:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state_dir.os, "fsync", fsync)
    prepare(tmp_path, lambda: made.append(True))
    assert made == [True]
    made.clear()
    with pytest.raises(StateDirError, match=r"is full \(No space left on device\): make room"):
        prepare(tmp_path, lambda: None)
    assert [path.name for path in tmp_path.iterdir()] == ["format"], "the probe is gone"


def test_a_read_only_directory_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(state_dir.os, "fsync", fsync)
    with pytest.raises(StateDirError, match="Read-only file system; mount it read-write"):
        prepare(tmp_path, pytest.fail)


_AGENT = """
import resource, sys
from pathlib import Path
from edge_agent.config import AgentConfig, DataConfig, PowerConfig
from edge_agent.daemon import main
state, data, limit = sys.argv[1:]
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
config = AgentConfig("pi", "mqtt://127.0.0.1:9", state, DataConfig(data), power=PowerConfig(source="estimate"))
sys.exit(main(config))
"""


def _agent(tmp_path: Path, limit: str = "") -> tuple[int, list[str]]:
    """A real agent on `tmp_path/state`, which must not come so far as to wait for a broker."""
    (tmp_path / "data" / "rgb" / "hall").mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-c", _AGENT, str(tmp_path / "state"), str(tmp_path / "data"), limit]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stderr.splitlines()


def _all(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_an_agent_on_a_newer_releases_state_says_so_in_a_line_and_ends(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    (state / "format").write_text("7\n")
    (state / "lock").touch()
    (state / "budget.json").write_text("of another kind")
    before = _all(state)
    code, lines = _agent(tmp_path)
    assert (code, len(lines)) == (2, 1), "systemd does not start it again"
    assert "is of format '7', this release knows 1: install the release that wrote it" in lines[0]
    assert _all(state) == before


def test_an_agent_whose_files_may_not_grow_says_so_in_a_line_and_ends(tmp_path: Path) -> None:
    code, lines = _agent(tmp_path, limit="1000")
    assert (code, len(lines)) == (1, 1)
    assert "is full (File too large): make room" in lines[0]
    assert _all(tmp_path / "state") == {"lock": b""}


def test_an_agent_whose_state_is_no_folder_says_so_in_a_line_and_ends(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    code, lines = _agent(tmp_path)
    assert (code, len(lines)) == (1, 1)
    assert "cannot be written" in lines[0]
    assert (tmp_path / "state").read_text() == "a file"
