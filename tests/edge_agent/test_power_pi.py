"""The Raspberry Pi 5's power chip behind a vcgencmd of our own: answers, faults, hangs, and throttling."""

from __future__ import annotations

import errno
import os
import struct
import time
from pathlib import Path

import boards
import pytest

from edge_agent.config import PowerConfig
from edge_agent.power.firmware import Firmware
from edge_agent.power.mailbox import Mailbox
from edge_agent.power.pi_pmic import PiPmic, candidates, parse_rails
from edge_agent.power.source import Candidate, PowerSourceError

TOTAL_W = sum(volts * amperes for _, volts, amperes in boards.PI5_RAILS)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def only(root: Path) -> Candidate:
    (candidate,) = candidates(root, PowerConfig(root=str(root)))
    return candidate


def test_twelve_rails_are_paired_by_name_and_the_supply_has_no_current() -> None:
    rails = parse_rails(boards.pmic_answer())
    assert len(rails) == 12
    assert rails["VDD_CORE"] == pytest.approx(0.9 * 1.5)
    assert sum(rails.values()) == pytest.approx(TOTAL_W)
    assert not {"EXT5V", "BATT"} & set(rails)


def test_a_rail_without_its_voltage_is_a_fault_and_not_a_smaller_sum() -> None:
    said = "\n".join(line for line in boards.pmic_answer().splitlines() if "VDD_CORE_V" not in line)
    with pytest.raises(PowerSourceError, match="VDD_CORE came with a voltage or a current alone"):
        parse_rails(said)


@pytest.mark.parametrize("said", ["", "hello", " EXT5V_V volt(24)=5.15128000V\n"])
def test_an_answer_without_rails_is_a_fault(said: str) -> None:
    with pytest.raises(PowerSourceError, match="told no rails"):
        parse_rails(said)


def test_a_number_that_is_none_is_a_fault() -> None:
    with pytest.raises(PowerSourceError, match="update the firmware"):
        parse_rails(" VDD_CORE_A current(7)=1.2.3A\n VDD_CORE_V volt(15)=0.9V\n")


def test_a_pi_5_is_read_through_the_command_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards.vcgencmd(tmp_path / "bin", monkeypatch, boards.pi5_script(tmp_path / "answers"))
    candidate = only(tmp_path / "root")
    assert (candidate.available, candidate.scope, len(candidate.rails)) == (True, "sum_of_rails", 12)
    assert "USB, HATs, NVMe" in candidate.reason, "what is not covered is said"
    assert candidate.open is not None
    source = candidate.open()
    assert isinstance(source, PiPmic)
    assert source.read().power_w == pytest.approx(TOTAL_W)
    assert source.read().flags == ()
    assert source.least_period_s == 0.1, "at most 10 Hz"
    source.close()


def test_a_rail_that_vanishes_fails_the_read_until_it_is_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = tmp_path / "answers"
    command = boards.vcgencmd(tmp_path / "bin", monkeypatch, boards.pi5_script(answers))
    source = PiPmic(tmp_path, Firmware(str(command)))
    (answers / "pmic").write_text(boards.pmic_answer(boards.PI5_RAILS[:-1]))
    with pytest.raises(PowerSourceError, match="rail HDMI vanished"):
        source.read()
    (answers / "pmic").write_text(boards.pmic_answer())
    assert source.read().power_w == pytest.approx(TOTAL_W)


@pytest.mark.parametrize(
    "script, reason",
    [
        ("""echo 'error=1 error_msg="Command not registered"'""", "Command not registered; only a Raspberry Pi 5"),
        ("""echo 'error=2 error_msg="Invalid arguments"'""", "Invalid arguments; update the firmware"),
        ("echo 'error=1'", "error=1; update the firmware"),
        ("exit 1", "exit status 1; update the firmware"),
        ("echo 'VCHI initialization failed'; exit 255", "VCHI initialization failed; add the user to group video"),
        ('echo "Can\'t open device file: /dev/vcio" >&2; exit 1', "group video"),
    ],
    ids=["Pi 4", "error 2", "no message", "exit 1", "no right", "no right on newer systems"],
)
def test_each_fault_of_the_command_is_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, reason: str
) -> None:
    boards.vcgencmd(tmp_path / "bin", monkeypatch, script)
    candidate = only(tmp_path)
    assert not candidate.available
    assert reason in candidate.reason


def test_without_the_command_the_reason_says_where_it_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards.not_on_path(tmp_path / "empty", monkeypatch)
    assert "no vcgencmd on the PATH" in only(tmp_path).reason


def test_a_command_under_the_root_goes_before_that_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards.vcgencmd(tmp_path / "root/usr/bin", monkeypatch, boards.pi5_script(tmp_path / "answers"))
    boards.vcgencmd(tmp_path / "bin", monkeypatch, "exit 1")
    assert only(tmp_path / "root").available


def hanging(folder: Path) -> tuple[Path, Path]:
    """A command that never answers, and where it writes the number of the process that it waits for."""
    command, pid = folder / "vcgencmd", folder / "pid"
    command.write_text(f"#!/bin/sh\nsleep 1000 &\necho $! > {pid}\nwait\n")
    command.chmod(0o755)
    return command, pid


def test_a_command_that_hangs_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    command, pid = hanging(tmp_path)
    firmware = Firmware(str(command), limit_s=1.5)
    with pytest.raises(PowerSourceError, match=r"no answer in 1\.5 s, so it was killed"):
        firmware.ask("pmic_read_adc")
    assert not alive(int(pid.read_text())), "or hung commands would pile up, ten a second"
    command.write_text("#!/bin/sh\necho well\n")
    assert firmware.ask("pmic_read_adc") == "well", "the next one is asked anew"


def test_a_command_that_cannot_even_be_killed_gets_no_company(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command, pid = hanging(tmp_path)
    firmware = Firmware(str(command), limit_s=1.5)
    with monkeypatch.context() as patched:
        patched.setattr(os, "killpg", lambda group, signal: None)
        with pytest.raises(PowerSourceError, match="no answer"):
            firmware.ask("pmic_read_adc")
    with pytest.raises(PowerSourceError, match="an earlier one still hangs in the kernel"):
        firmware.ask("pmic_read_adc")
    firmware.close()
    assert not alive(int(pid.read_text()))
    assert firmware._running is not None
    firmware._running.wait()


def alive(pid: int) -> bool:
    """Whether a process runs; a killed one that nobody has waited for yet does not."""
    deadline_s = time.monotonic() + 10.0  # a kill takes effect in its own time
    while time.monotonic() < deadline_s:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return False
        if state in "ZX":
            return False
        os.sched_yield()
    return True


def test_a_command_that_may_not_be_run_names_the_group(tmp_path: Path) -> None:
    (tmp_path / "vcgencmd").write_text("#!/bin/sh\n")
    with pytest.raises(PowerSourceError, match="group video"):
        Firmware(str(tmp_path / "vcgencmd")).ask("pmic_read_adc")
    with pytest.raises(PowerSourceError, match="raspi-utils"):
        Firmware(str(tmp_path / "absent")).ask("pmic_read_adc")


def test_throttling_flags_what_is_read_while_it_lasts_and_what_came_since_the_last_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, clock = tmp_path / "answers", Clock()
    # Bit 16: there was an undervoltage since boot, long before this began.
    command = boards.vcgencmd(tmp_path / "bin", monkeypatch, boards.pi5_script(answers, throttled="0x10000"))
    source = PiPmic(tmp_path, Firmware(str(command)), clock)
    assert source.read().flags == (), "what was before is not of this window"
    flags = []
    for bits in ("0x50004", "0xd0000", "0xd0000", "0xd0001"):
        boards.write(answers, throttled=f"throttled={bits}")
        clock.now_s += 1.0
        flags.append(source.read().flags)
    assert flags == [
        ("throttled",),  # now, and new since boot
        ("soft-temperature-limit",),  # came and went between two looks
        (),
        ("undervoltage",),  # now; it had been so before, too
    ]


def test_throttling_is_asked_once_a_second_at_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers, clock = tmp_path / "answers", Clock()
    command = boards.vcgencmd(tmp_path / "bin", monkeypatch, boards.pi5_script(answers))
    source = PiPmic(tmp_path, Firmware(str(command)), clock)
    source.read()
    boards.write(answers, throttled="throttled=0x4")
    clock.now_s = 0.9
    assert source.read().flags == ()
    clock.now_s = 1.0
    assert source.read().flags == ("throttled",)


def test_the_kernels_file_tells_throttling_without_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = boards.vcgencmd(tmp_path / "bin", monkeypatch, boards.pi5_script(tmp_path / "answers", throttled="0x1"))
    bits = boards.write(tmp_path / "sys/devices/platform/soc/soc:firmware", get_throttled="4")
    source = PiPmic(tmp_path, Firmware(str(command)))
    assert source.read().flags == ("throttled",), "the file's 4 and not the command's 1"
    assert bits.is_dir()


# --- the device instead of the command ------------------------------------------------------------------------------


class Device:
    """The kernel's side of /dev/vcio: takes the question out of the buffer and writes status and answer into it."""

    def __init__(self, answer: str, status: int = 0) -> None:
        self.answer, self.status = answer, status
        self.asked: list[str] = []

    def __call__(self, device: int, request: int, buffer: bytearray) -> int:
        size, code, tag, room = struct.unpack_from("=4I", buffer)
        assert (size, code, tag, room) == (len(buffer), 0, 0x30080, 1024)
        assert request == (0xC0086400 if struct.calcsize("P") == 8 else 0xC0046400)
        self.asked.append(bytes(buffer[24:1048]).rstrip(b"\0").decode())
        struct.pack_into("=I", buffer, 20, self.status)
        buffer[24:1048] = self.answer.encode().ljust(1024, b"\0")
        return 0


def device_file(folder: Path) -> Path:
    return boards.write(folder / "dev", vcio="") / "vcio"


def test_the_device_is_asked_without_a_process(tmp_path: Path) -> None:
    device = Device(boards.pmic_answer())
    source = PiPmic(tmp_path, Firmware(None, mailbox=Mailbox(device_file(tmp_path), device)))
    assert source.read().power_w == pytest.approx(TOTAL_W)
    assert device.asked.count("pmic_read_adc") == 2


def test_the_twelve_rails_fit_into_the_devices_answer() -> None:
    assert len(boards.pmic_answer()) < 1024


@pytest.mark.parametrize(
    "device, reason",
    [
        (Device('error=1 error_msg="Command not registered"'), "only a Raspberry Pi 5"),
        (Device("", status=0x80000001), "exit status 2147483649"),
    ],
)
def test_faults_of_the_firmware_come_through_the_device_too(tmp_path: Path, device: Device, reason: str) -> None:
    with pytest.raises(PowerSourceError, match=reason):
        Firmware(None, mailbox=Mailbox(device_file(tmp_path), device)).ask("pmic_read_adc")


def test_a_device_that_takes_no_such_request_gives_way_to_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    boards.vcgencmd(tmp_path / "bin", monkeypatch, boards.pi5_script(tmp_path / "answers"))
    device_file(tmp_path / "root")  # a plain file knows no ioctl
    assert only(tmp_path / "root").available


def test_without_a_command_the_devices_own_fault_is_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    boards.not_on_path(tmp_path / "empty", monkeypatch)
    device_file(tmp_path / "root")
    assert "the firmware's device: Inappropriate ioctl" in only(tmp_path / "root").reason


@pytest.mark.parametrize(
    "number, reason", [(errno.ETIMEDOUT, "did not answer pmic_read_adc; restart"), (errno.EACCES, "group video")]
)
def test_a_firmware_that_is_stuck_or_forbidden_says_so(tmp_path: Path, number: int, reason: str) -> None:
    def refuse(device: int, request: int, buffer: bytearray) -> int:
        raise OSError(number, os.strerror(number))

    with pytest.raises(PowerSourceError, match=reason):
        Firmware(None, mailbox=Mailbox(device_file(tmp_path), refuse)).ask("pmic_read_adc")
