"""Meters: joules against sums worked by hand, gaps that show, and a Jetson's files in a folder of our own."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from edge_agent.config import PowerConfig
from edge_agent.power.base import Energy, NoMeter, PowerSourceError, Sample, SampledMeter, integrate
from edge_agent.power.discover import open_meter
from edge_agent.power.estimate import CpuTimeEstimate
from edge_agent.power.jetson_sysfs import JetsonSysfs, find_rails


def samples(*pairs: tuple[float, float]) -> list[Sample]:
    return [Sample(at_s, power_w) for at_s, power_w in pairs]


CONSTANT = samples(*((float(t), 5.0) for t in range(11)))
RAMP = samples(*((float(t), 2.0 * t) for t in range(11)))


@pytest.mark.parametrize(
    "power, start_s, end_s, energy_j",
    [
        (CONSTANT, 0.0, 10.0, 50.0),
        (CONSTANT, 2.25, 2.75, 2.5),  # within one interval
        (CONSTANT, 2.5, 7.25, 23.75),
        (RAMP, 0.0, 10.0, 100.0),  # t squared
        (RAMP, 3.0, 4.0, 7.0),
        (RAMP, 2.5, 6.5, 6.5**2 - 2.5**2),
    ],
)
def test_power_that_is_linear_between_samples_is_integrated_exactly(
    power: list[Sample], start_s: float, end_s: float, energy_j: float
) -> None:
    said = integrate(power, start_s, end_s, max_gap_s=3.0)
    assert said.energy_j == pytest.approx(energy_j)
    assert (said.state, said.reason) == ("measured", "")


def test_uneven_samples_against_trapezoids_added_one_by_one() -> None:
    uneven = samples((0.0, 1.0), (0.3, 4.0), (1.1, 2.0), (1.2, 9.0), (2.7, 3.0))
    slow = sum((b.at_s - a.at_s) * (a.power_w + b.power_w) / 2 for a, b in itertools.pairwise(uneven))
    assert integrate(uneven, 0.0, 2.7, max_gap_s=5.0).energy_j == pytest.approx(slow)


def test_windows_side_by_side_add_up_to_the_whole() -> None:
    uneven = samples((0.0, 1.0), (0.3, 4.0), (1.1, 2.0), (1.2, 9.0), (2.7, 3.0))
    edges = [0.0, 0.1, 0.3, 0.95, 1.15, 2.0, 2.7]
    parts = [integrate(uneven, a, b, max_gap_s=5.0).energy_j or 0.0 for a, b in itertools.pairwise(edges)]
    assert sum(parts) == pytest.approx(integrate(uneven, 0.0, 2.7, max_gap_s=5.0).energy_j)


def test_a_gap_is_left_out_and_makes_the_figure_partial() -> None:
    gap = samples((0.0, 5.0), (1.0, 5.0), (8.0, 5.0), (9.0, 5.0), (10.0, 5.0))
    said = integrate(gap, 0.0, 10.0, max_gap_s=3.0)
    assert said == Energy(15.0, "partial", "samples cover 30% of the window")
    assert integrate(gap, 0.0, 10.0, max_gap_s=3.0, fault="unplugged").reason == "unplugged"
    assert integrate(gap, 8.0, 10.0, max_gap_s=3.0).state == "measured", "beside the gap all is well"


def test_an_edge_without_samples_makes_the_figure_partial() -> None:
    assert integrate(CONSTANT, -2.0, 2.0, max_gap_s=3.0) == Energy(10.0, "partial", "samples cover 50% of the window")
    assert integrate(CONSTANT, 8.0, 12.0, max_gap_s=3.0).state == "partial"


@pytest.mark.parametrize("power", [[], CONSTANT[:1], samples((20.0, 5.0), (21.0, 5.0))])
def test_a_window_without_samples_is_missing_and_never_zero(power: list[Sample]) -> None:
    assert integrate(power, 2.0, 4.0, max_gap_s=3.0) == Energy(None, "missing", "no samples in this window")
    assert integrate(power, 2.0, 4.0, max_gap_s=3.0, fault="rail: gone").reason == "rail: gone"


class Source:
    """Watts from a list; a text is a reason why they cannot be read."""

    name, scope = "script", "board"

    def __init__(self, *says: float | str) -> None:
        self.says = list(says)

    def read_w(self) -> float:
        said = self.says.pop(0) if len(self.says) > 1 else self.says[0]
        if isinstance(said, str):
            raise PowerSourceError(said)
        return said


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def sampled(source: Source, clock: Clock, keep_s: float = 100.0) -> SampledMeter:
    return SampledMeter(source, period_s=1.0, keep_s=keep_s, clock=clock)


def sample_until(meter: SampledMeter, clock: Clock, end_s: int) -> None:
    while clock.now_s < end_s:
        meter.sample()
        clock.now_s += 1.0


def test_a_sampled_meter_reads_once_more_at_the_end_of_a_window() -> None:
    clock = Clock()
    meter = sampled(Source(4.0), clock)
    sample_until(meter, clock, 3)
    clock.now_s = 2.5
    assert meter.energy(0.5, 2.5, cpu_s=0.0) == Energy(8.0, "measured")
    assert (meter.source, meter.scope, meter.state) == ("script", "board", "measured")


def test_a_source_that_fails_leaves_a_gap_with_its_reason() -> None:
    clock = Clock()
    meter = sampled(Source(4.0, 4.0, *["rail VDD_IN: Input/output error"] * 8, 4.0), clock)
    sample_until(meter, clock, 10)
    said = meter.energy(0.0, 10.0, cpu_s=0.0)
    assert said.state == "partial"
    assert said.energy_j == 4.0, "one second is known of ten"


def test_a_source_that_never_worked_is_missing_with_its_reason() -> None:
    clock = Clock()
    meter = sampled(Source("rail VDD_IN: Input/output error"), clock)
    sample_until(meter, clock, 10)
    assert meter.energy(0.0, 10.0, cpu_s=9.0) == Energy(None, "missing", "rail VDD_IN: Input/output error")
    assert meter.power_w() is None


def test_the_newest_watts_are_shown_only_while_they_are_new() -> None:
    clock = Clock()
    meter = sampled(Source(4.0), clock)
    assert meter.power_w() is None
    meter.sample()
    clock.now_s = 3.0
    assert meter.power_w() == 4.0
    clock.now_s = 3.1
    assert meter.power_w() is None


def test_memory_is_bounded_and_what_is_too_old_shows() -> None:
    clock = Clock()
    meter = sampled(Source(4.0), clock, keep_s=20.0)
    sample_until(meter, clock, 100)
    assert meter.energy(0.0, 99.0, cpu_s=0.0).state == "partial"
    assert meter.energy(90.0, 99.0, cpu_s=0.0) == Energy(36.0, "measured")


def test_the_sampling_thread_ends_when_it_is_told_to() -> None:
    meter = SampledMeter(Source(4.0), period_s=0.001)
    meter.start()
    thread = meter._thread
    assert thread is not None
    meter.stop()
    assert not thread.is_alive()
    assert meter._samples, "it had taken samples"


def test_an_estimate_is_cpu_seconds_times_watts_and_says_so() -> None:
    clock, cpu = Clock(), Clock()
    meter = CpuTimeEstimate(3.0, cpu, clock)
    assert meter.energy(0.0, 100.0, cpu_s=2.0) == Energy(6.0, "estimated")
    assert (meter.state, meter.source, meter.scope) == ("estimated", "cpu-time x 3 W per core", "cpu")
    assert meter.power_w() is None, "no time has passed"
    clock.now_s, cpu.now_s = 4.0, 2.0
    assert meter.power_w() == 1.5
    clock.now_s = 6.0
    assert meter.power_w() == 0.0


def test_no_meter_says_why() -> None:
    assert NoMeter("switched off").energy(0.0, 1.0, 1.0) == Energy(None, "missing", "switched off")
    assert NoMeter("switched off").power_w() is None


# --- Jetson ---------------------------------------------------------------------------------------------------------


def write_monitor(root: Path, *rails: tuple[str, int, int], address: str = "1-0040") -> Path:
    """An INA3221 as JetPack 5 shows it: label, millivolts, milliamperes of each channel, and the sum as channel 7."""
    folder = root / f"sys/bus/i2c/drivers/ina3221/{address}/hwmon/hwmon3"
    folder.mkdir(parents=True)
    for channel, (label, voltage_mv, current_ma) in enumerate(rails, start=1):
        (folder / f"in{channel}_label").write_text(label + "\n")
        (folder / f"in{channel}_input").write_text(f"{voltage_mv}\n")
        (folder / f"curr{channel}_input").write_text(f"{current_ma}\n")
    (folder / "in7_label").write_text("sum of shunt voltages\n")
    (folder / "in7_input").write_text("999999\n")
    return folder


ORIN = (("VDD_IN", 5000, 1600), ("VDD_CPU_GPU_CV", 4900, 700), ("VDD_SOC", 4900, 300))


def test_the_whole_input_rail_alone_is_the_total(tmp_path: Path) -> None:
    write_monitor(tmp_path, *ORIN)
    source = JetsonSysfs(tmp_path)
    assert source.read_w() == pytest.approx(8.0)
    assert (source.name, source.scope) == ("jetson-sysfs", "module")


def test_a_carrier_boards_input_rail_counts_for_the_board(tmp_path: Path) -> None:
    write_monitor(tmp_path, ("POM_5V_IN", 5000, 900), ("POM_5V_GPU", 5000, 100), ("POM_5V_CPU", 5000, 300))
    source = JetsonSysfs(tmp_path)
    assert source.read_w() == pytest.approx(4.5)
    assert source.scope == "board"


def test_without_an_input_rail_the_rails_of_all_monitors_are_added(tmp_path: Path) -> None:
    write_monitor(tmp_path, ("GPU", 19000, 100), ("CPU", 19000, 200), ("SOC", 19000, 50))
    write_monitor(tmp_path, ("CV", 19000, 10), ("NC", 0, 32767), ("SYS5V", 5000, 400), address="1-0041")
    source = JetsonSysfs(tmp_path)
    assert source.scope == "sum_of_rails"
    assert source.read_w() == pytest.approx(19.0 * 0.36 + 2.0)
    assert [rail.label for rail in find_rails(tmp_path)] == ["GPU", "CPU", "SOC", "CV", "SYS5V"]


def test_channels_without_a_label_are_not_wired_and_small_negative_currents_are_real(tmp_path: Path) -> None:
    folder = write_monitor(tmp_path, ("GPU", 5000, -4), ("CPU", 5000, 100))
    assert not (folder / "in3_label").exists()
    assert JetsonSysfs(tmp_path).read_w() == pytest.approx(0.48)


def test_power_is_read_anew_each_time(tmp_path: Path) -> None:
    folder = write_monitor(tmp_path, *ORIN)
    source = JetsonSysfs(tmp_path)
    (folder / "curr1_input").write_text("2000\n")
    assert source.read_w() == pytest.approx(10.0)


def test_no_monitor_is_said_with_what_is_needed(tmp_path: Path) -> None:
    with pytest.raises(PowerSourceError, match=r"no INA3221 power monitor under .* \(not a Jetson with JetPack 5\+\)"):
        JetsonSysfs(tmp_path)


def test_a_rail_that_answers_with_an_error_is_named(tmp_path: Path) -> None:
    folder = write_monitor(tmp_path, *ORIN)
    source = JetsonSysfs(tmp_path)
    # Reading address 0 of this process is an input/output error, as a monitor that fell off its bus gives.
    (folder / "curr1_input").unlink()
    (folder / "curr1_input").symlink_to("/proc/self/mem")
    with pytest.raises(PowerSourceError, match=r"rail VDD_IN: .*Input/output error"):
        source.read_w()
    (folder / "curr1_input").unlink()
    with pytest.raises(PowerSourceError, match=r"rail VDD_IN: .*No such file"):
        source.read_w()
    (folder / "curr1_input").write_text("busy")
    with pytest.raises(PowerSourceError, match="rail VDD_IN: invalid literal"):
        source.read_w()


@pytest.mark.parametrize("denied", ["in1_label", "in1_input"])
def test_a_monitor_that_may_not_be_read_says_what_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, denied: str
) -> None:
    write_monitor(tmp_path, *ORIN)
    read = Path.read_text

    def guarded(path: Path) -> str:  # root may read anything, so file modes would not do
        if path.name == denied:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_text", guarded)
    with pytest.raises(PowerSourceError, match="permission denied; give the agent's user read access"):
        JetsonSysfs(tmp_path).read_w()


# --- choosing -------------------------------------------------------------------------------------------------------


def config(tmp_path: Path, source: str) -> PowerConfig:
    return PowerConfig(source=source, watts_per_core=2.0, root=str(tmp_path))  # type: ignore[arg-type]


def test_a_real_meter_is_taken_where_there_is_one(tmp_path: Path) -> None:
    write_monitor(tmp_path, *ORIN)
    for wanted in ("auto", "jetson-sysfs"):
        meter, why = open_meter(config(tmp_path, wanted), Clock())
        assert isinstance(meter, SampledMeter)
        assert (meter.source, meter.state, meter.scope) == ("jetson-sysfs", "measured", "module")
        assert why == "jetson-sysfs reads real power, scope module"


def test_without_a_meter_an_estimate_is_taken_and_says_why(tmp_path: Path) -> None:
    meter, why = open_meter(config(tmp_path, "auto"), Clock())
    assert meter.state == "estimated"
    assert "no INA3221" in why
    assert "falling back to an estimate" in why


def test_a_meter_asked_for_by_name_is_never_replaced(tmp_path: Path) -> None:
    with pytest.raises(PowerSourceError, match="no INA3221"):
        open_meter(config(tmp_path, "jetson-sysfs"), Clock())
    write_monitor(tmp_path, *ORIN)
    assert open_meter(config(tmp_path, "estimate"), Clock())[0].state == "estimated"
    assert open_meter(config(tmp_path, "none"), Clock())[0].state == "missing"
