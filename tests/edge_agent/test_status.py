"""The status file: whole or not there, and readable for people."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest

from edge_agent.status import Status, describe, is_running, read_status, write_status

STATUS = Status(
    agent="pi",
    fleet="lab",
    pid=os.getpid(),
    version="0.1",
    broker="mqtt://broker:1883",
    connected=True,
    aggregator_online=False,
    order="train merged round 3 of job",
    orders_waiting=1,
    orders_done=7,
    orders_failed=2,
    last_failure="out of memory",
    meter="jetson-sysfs: reads real power",
    energy_state="measured",
    bundles=("d 0123456789ab",),
    dropped={"malformed": 3},
    written_at=0.0,
)


def test_what_was_written_is_read_and_the_newest_wins(tmp_path: Path) -> None:
    write_status(tmp_path, STATUS)
    assert read_status(tmp_path) == STATUS
    later = msgspec.structs.replace(STATUS, orders_done=8, order="")
    write_status(tmp_path, later)
    assert read_status(tmp_path) == later
    assert [path.name for path in tmp_path.iterdir()] == ["status.json"], "no half-written file stays"


def test_a_status_that_is_not_there_or_of_another_version_is_none(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_text('{"agent": "pi"}')
    assert read_status(tmp_path) is None
    (tmp_path / "status.json").write_text('{"agent"')
    assert read_status(tmp_path) is None


def test_a_folder_that_is_gone_is_an_error_for_the_writer(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        write_status(tmp_path / "gone", STATUS)


def test_people_see_every_figure() -> None:
    text = describe(STATUS)
    for said in (
        "pi in fleet lab, mas-edge 0.1, running (pid ",
        "mqtt://broker:1883, connected",
        "not seen",
        "train merged round 3 of job",
        "1 waiting, 7 done, 2 failed",
        "out of memory",
        "jetson-sysfs: reads real power (measured)",
        "d 0123456789ab",
        "3 x malformed",
        " s ago",
    ):
        assert said in text
    idle = msgspec.structs.replace(
        STATUS, pid=2**22 + 1, connected=False, order="", last_failure="", bundles=(), dropped={}
    )
    assert not is_running(idle)
    for said in ("not running", "not connected", "dropped       nothing", "bundles       none", "order         none"):
        assert said in describe(idle)
