"""Jetson boards: which rail is the total, what is never added, and what a monitor that fails says."""

from __future__ import annotations

from pathlib import Path

import boards
import pytest

from edge_agent.config import PowerConfig
from edge_agent.power.jetson_sysfs import candidates, find_channels, open_jetson
from edge_agent.power.source import Candidate, PowerSourceError


def only(root: Path) -> Candidate:
    (candidate,) = candidates(root, PowerConfig(root=str(root)))
    return candidate


def watts(root: Path) -> float:
    return open_jetson(root).read().power_w


def labels(root: Path) -> list[str]:
    return [channel.rail.label for channel in find_channels(root)]


@pytest.mark.parametrize(
    "rails, scope, total, power_w",
    [
        (boards.XAVIER_NX, "module", "VDD_IN", 6.0),
        (boards.ORIN_NANO, "module", "VDD_IN", 8.0),
        (boards.NANO, "board", "POM_5V_IN", 4.5),
    ],
    ids=["Xavier NX", "Orin Nano", "Nano"],
)
def test_jetpack_5_the_input_rail_alone_is_the_total(
    tmp_path: Path, rails: tuple[boards.Rail, ...], scope: str, total: str, power_w: float
) -> None:
    boards.jetpack5(tmp_path, rails)
    source = open_jetson(tmp_path)
    assert source.read().power_w == pytest.approx(power_w)
    assert (source.name, source.scope, source.domain, source.rails) == ("jetson-sysfs", scope, scope, (total,))


@pytest.mark.parametrize("with_power", [True, False], ids=["in_power", "volts and amperes"])
def test_jetpack_4_nano_and_tx2_tell_milliwatts_or_volts_and_amperes(tmp_path: Path, with_power: bool) -> None:
    nano, tx2 = tmp_path / "nano", tmp_path / "tx2"
    boards.jetpack4(nano, boards.NANO, with_power=with_power)
    boards.jetpack4(tx2, *boards.TX2, with_power=with_power)
    assert watts(nano) == pytest.approx(4.5)
    assert open_jetson(nano).scope == "board"
    assert watts(tx2) == pytest.approx(4.75), "VDD_IN is on the second monitor"
    assert open_jetson(tx2).rails == ("VDD_IN",)


@pytest.mark.parametrize(
    "monitors, power_w, rails",
    [
        (boards.AGX_ORIN, 3.8 + 1.9 + 4.0 + 1.0, ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "VDDQ_VDD2_1V8AO")),
        (boards.AGX_XAVIER, 19.0 * 0.39 + 2.0, ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")),
    ],
    ids=["AGX Orin", "AGX Xavier"],
)
def test_without_an_input_rail_all_rails_are_added_and_called_a_sum(
    tmp_path: Path, monitors: tuple[tuple[boards.Rail, ...], ...], power_w: float, rails: tuple[str, ...]
) -> None:
    boards.jetpack5(tmp_path, *monitors)
    candidate = only(tmp_path)
    assert (candidate.available, candidate.scope, candidate.rails) == (True, "sum_of_rails", rails)
    assert watts(tmp_path) == pytest.approx(power_w), "neither NC nor channel 7 is in it"
    assert "no rail carries the whole input" in candidate.reason


@pytest.mark.parametrize("label", ["VIN", None], ids=["labelled", "without a label"])
def test_thor_tells_its_whole_input_in_microwatts(tmp_path: Path, label: str | None) -> None:
    boards.thor(tmp_path, microwatts=38_500_000, label=label)
    source = open_jetson(tmp_path)
    assert source.read().power_w == pytest.approx(38.5)
    assert (source.scope, source.rails) == ("board", ("VIN",))


def test_an_ina238_of_another_name_is_not_a_thors_input(tmp_path: Path) -> None:
    boards.thor(tmp_path, label="FAN")
    assert open_jetson(tmp_path).scope == "sum_of_rails"
    assert "VIN" not in labels(tmp_path)


def test_channels_that_are_not_wired_are_left_out(tmp_path: Path) -> None:
    (folder,) = boards.jetpack5(tmp_path, (("GPU", 5000, 100), ("nc", 0, 32767), ("CPU", 5000, 300)))
    assert labels(tmp_path) == ["GPU", "CPU"]
    boards.write(folder, in3_enable=0)
    assert labels(tmp_path) == ["GPU"], "a channel that is switched off answers with an error"
    (folder / "in1_label").unlink()
    boards.write(folder, in3_enable=1)
    assert labels(tmp_path) == ["CPU"]


def test_small_negative_readings_are_real(tmp_path: Path) -> None:
    (folder,) = boards.jetpack5(tmp_path, (("GPU", 5000, -4), ("CPU", 5000, 100)))
    assert watts(tmp_path) == pytest.approx(0.48)
    boards.write(folder, curr2_input=-2)
    assert watts(tmp_path) == pytest.approx(-0.03), "the sensor says so; it is for the meter to judge"


def test_power_is_read_anew_each_time(tmp_path: Path) -> None:
    (folder,) = boards.jetpack5(tmp_path, boards.ORIN_NANO)
    source = open_jetson(tmp_path)
    assert source.read().power_w == pytest.approx(8.0)
    boards.write(folder, curr1_input=2000)
    assert source.read().power_w == pytest.approx(10.0)


def test_the_offset_in_watts_follows_shunt_and_voltage(tmp_path: Path) -> None:
    known, unknown, old = tmp_path / "known", tmp_path / "unknown", tmp_path / "old"
    boards.jetpack5(known, boards.ORIN_NANO, shunt_uohm=2000)
    boards.jetpack5(unknown, boards.ORIN_NANO)
    boards.jetpack4(old, *boards.TX2)
    # 80 microvolts over the shunt, at the rail's voltage.
    assert open_jetson(known).accuracy.absolute == pytest.approx(80e-6 / 0.002 * 5.0)
    assert open_jetson(unknown).accuracy.absolute == pytest.approx(80e-6 / 0.005 * 5.0)
    assert open_jetson(old).accuracy.absolute == pytest.approx(80e-6 / 0.005 * 19.0)
    assert open_jetson(known).accuracy.relative == pytest.approx(0.015)


def test_offsets_of_rails_that_are_added_add(tmp_path: Path) -> None:
    boards.jetpack5(tmp_path, *boards.AGX_XAVIER)
    assert open_jetson(tmp_path).accuracy.absolute == pytest.approx(80e-6 / 0.005 * (5 * 19.0 + 5.0))


def test_no_monitor_is_said_with_what_was_looked_for(tmp_path: Path) -> None:
    candidate = only(tmp_path)
    assert (candidate.name, candidate.available, candidate.open) == ("jetson-sysfs", False, None)
    assert "no INA3221 power monitor" in candidate.reason
    assert "JetPack 4" in candidate.reason


def test_a_rail_that_fails_is_named_and_never_counted_as_nothing(tmp_path: Path) -> None:
    (folder, _) = boards.jetpack5(tmp_path, *boards.AGX_XAVIER)
    source = open_jetson(tmp_path)
    boards.break_with_eio(folder / "curr2_input")
    with pytest.raises(PowerSourceError, match=r"rail CPU: .*Input/output error; look at dmesg"):
        source.read()
    (folder / "curr2_input").unlink()
    with pytest.raises(PowerSourceError, match=r"rail CPU: .*No such file"):
        source.read()
    (folder / "curr2_input").write_text("busy")
    with pytest.raises(PowerSourceError, match=r"rail CPU: .* says 'busy', which is no number"):
        source.read()
    (folder / "curr2_input").write_bytes(b"\xff\xfe")
    with pytest.raises(PowerSourceError, match=r"rail CPU: .* holds no text"):
        source.read()
    boards.write(folder, curr2_input=200)
    assert source.read().power_w == pytest.approx(19.0 * 0.39 + 2.0), "it goes on when the monitor is back"


def test_a_broken_input_rail_is_not_replaced_by_the_sum_of_what_is_left(tmp_path: Path) -> None:
    (folder,) = boards.jetpack5(tmp_path, boards.ORIN_NANO)
    boards.break_with_eio(folder / "in1_input")
    candidate = only(tmp_path)
    assert not candidate.available
    assert "rail VDD_IN" in candidate.reason


@pytest.mark.parametrize("denied", ["in1_label", "in1_input", "curr1_input"])
def test_a_monitor_that_may_not_be_read_says_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    boards.jetpack5(tmp_path, boards.ORIN_NANO)
    boards.deny(monkeypatch, denied)
    candidate = only(tmp_path)
    assert not candidate.available
    assert "permission denied" in candidate.reason
    assert "70-mas-power.rules" in candidate.reason
    assert "group mas-agent" in candidate.reason
