"""A state directory that is read-only, full, or of a newer version, and a disk that fills up while a job runs."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import pytest
from test_service import ONE, ZEROS, Field, eventually, no_torch, service_test, settings

from aggregator import service
from aggregator.coordinator import Coordinator
from aggregator.coordinator.actions import Average
from aggregator.coordinator.events import AnyEvent, Tick
from aggregator.journal import Journal
from aggregator.service import Service
from models.wire.blobstore import BlobStoreError, PartialBlob
from models.wire.chunks import Verdict
from models.wire.messages import BlobRef, TrainOrder

pytestmark = pytest.mark.slow
__all__ = ["no_torch"]


def mount(*words: str) -> None:
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a small or a read-only disk")
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    folder = tmp_path / "state"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", "size=1m", "mas-test", str(folder))
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(file: FileIO, size: int) -> None:
    """Write until there is no room for as much; a write that was cut short is followed by one that fails."""
    while file.write(bytes(size)):
        pass


def said(caplog: pytest.LogCaptureFixture, folder: Path, code: int = 1) -> str:
    """The one line that an aggregator on this state ends with, and with this exit code."""
    caplog.clear()
    with caplog.at_level(logging.ERROR):
        assert service.main(settings("mqtt://127.0.0.1:9", folder)) == code
    (line,) = caplog.messages
    assert line.startswith("cannot run: ")
    assert "\n" not in line
    return line


def test_a_read_only_state_is_said_and_nothing_is_changed(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Journal(f"sqlite:///{small_disk / 'journal.sqlite'}"):
        pass
    before = {path.name: path.read_bytes() for path in small_disk.iterdir()}
    mount("-o", "remount,ro", str(small_disk))
    assert "Read-only file system" in said(caplog, tmp_path)
    assert {path.name: path.read_bytes() for path in small_disk.iterdir()} == before


@pytest.mark.parametrize("fresh", [True, False])
def test_a_full_state_is_said_and_works_again_when_there_is_room(
    small_disk: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, fresh: bool
) -> None:
    if not fresh:
        with Journal(f"sqlite:///{small_disk / 'journal.sqlite'}"):
            pass
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (65536, 4096):
            with pytest.raises(OSError, match="No space"):
                fill(file, size)
    line = said(caplog, tmp_path)
    assert "full" in line or "No space left" in line or "disk I/O error" in line
    filler.unlink()
    with Journal(f"sqlite:///{small_disk / 'journal.sqlite'}") as journal:
        assert len(journal) == 0


def test_a_state_of_a_newer_version_is_said_and_nothing_is_changed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "state" / "journal.sqlite"
    path.parent.mkdir()
    with Journal(f"sqlite:///{path}"):
        pass
    connection = sqlite3.connect(path)
    with connection:
        connection.execute("update journal_about set value = 99")
    connection.close()
    before = path.read_bytes()
    assert "the journal has schema version 99" in said(caplog, tmp_path, code=2)
    assert path.read_bytes() == before


def test_an_update_that_finds_the_disk_full_waits_and_its_agent_is_not_blamed(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    accept, full = PartialBlob.accept, [True]

    def short(self: PartialBlob, index: int, data: bytes) -> Verdict:
        if full[0] and "state" in str(self.path):
            raise BlobStoreError("cannot write") from OSError(errno.ENOSPC, "No space left on device")
        return accept(self, index, data)

    monkeypatch.setattr(PartialBlob, "accept", short)

    async def test(running: Service, field: Field) -> None:
        running._room._look_s = 0.01
        await field.present()
        await field.submit()
        order = await field.next(TrainOrder)
        await field.report(order, ZEROS)
        await eventually(lambda: any("no room" in message for message in caplog.messages))
        assert running.state.agents["pi"].busy == order.key
        past_s = running._clock() + order.ttl_s + 1.0
        monkeypatch.setattr(running, "_clock", lambda: past_s)
        running.apply(Tick())
        assert running.state.agents["pi"].busy == order.key, "no deadline passes for what waits for us"
        full[0] = False
        second = await field.next(TrainOrder)
        assert (second.key.round, second.key.attempt) == (1, 0)
        assert running.state.agents["pi"].strikes == 0

    service_test(broker_url, tmp_path, test)


def test_an_average_that_finds_the_disk_full_is_made_when_there_is_room(broker_url: str, tmp_path: Path) -> None:
    async def test(running: Service, field: Field) -> None:
        running._room._look_s = 0.01
        average, lacks = running._effects.average, [3]

        async def short(action: Average) -> BlobRef:
            if lacks[0]:
                lacks[0] -= 1
                raise BlobStoreError("cannot write") from OSError(errno.ENOSPC, "No space left on device")
            return await average(action)

        running._effects.average = short  # type: ignore[method-assign]
        await field.present()
        job = await field.submit()
        await field.report(await field.next(TrainOrder), ZEROS)
        assert (await field.next(TrainOrder)).key.round == 1
        assert lacks == [0]
        assert running.state.jobs[job].spec.name == ONE.name

    service_test(broker_url, tmp_path, test)


def test_a_journal_that_keeps_states_goes_on_from_them(
    broker_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "EVENTS_KEPT", 2)

    async def test(running: Service, field: Field) -> None:
        await field.present()
        await field.submit(rounds=4)
        await field.report(await field.next(TrainOrder), ZEROS)
        assert (await field.next(TrainOrder)).key.round == 1
        again = Coordinator(Second(running._journal), running._journal.state())
        assert again.state == running.state
        assert 0 < running._journal._kept <= len(running._journal)
        assert running._journal.since_state < 2

    service_test(broker_url, tmp_path, test)


class Second:
    """Reads a journal that another writes."""

    def __init__(self, journal: Journal) -> None:
        self.replay = journal.replay

    def append(self, event: AnyEvent, at_s: float) -> None:
        raise AssertionError("this one only reads")
