"""The status file: whole or not there, and readable for people."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from edge_agent.status import Status, StatusError, describe, is_running, read_status, write_status

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


def test_where_no_agent_has_run_there_is_no_status(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    assert read_status(tmp_path / "gone") is None


@pytest.mark.parametrize("data", [b'{"agent": "pi"}', b'{"agent"', b'{"agent": "\xff\xfe"}'])
def test_a_status_of_another_version_or_damaged_is_not_called_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "status.json").write_bytes(data)
    with pytest.raises(StatusError, match=r"status\.json is no status of this version .* restart the agent"):
        read_status(tmp_path)


def test_a_status_that_may_not_be_read_says_who_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(StatusError, match=r"status\.json may not be read: Permission denied; ask as the agent's user"):
        read_status(tmp_path)


def test_a_status_that_is_no_file_is_an_error_and_the_command_says_so(tmp_path: Path) -> None:
    (tmp_path / "status.json").mkdir()
    with pytest.raises(StatusError, match="cannot be read: Is a directory"):
        read_status(tmp_path)
    config = tmp_path / "agent.toml"
    config.write_text(f'id = "pi"\nbroker = "mqtt://broker"\nstate_dir = "{tmp_path}"\n[data]\nroot = "pictures"\n')
    command = [sys.executable, "-m", "tools.cli.main", "agent", "status", "--config", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"{tmp_path / 'status.json'} cannot be read: Is a directory\n"


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
