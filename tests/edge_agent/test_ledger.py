"""The account of a device's time: nothing is lost, nothing is counted twice, nothing is claimed to be better known."""

from __future__ import annotations

import dataclasses

import pytest

from edge_agent.ledger import MAX_ACCOUNTS, Ledger, Window
from edge_agent.power.base import Measurement, NoMeter
from edge_agent.power.estimate import CpuTimeEstimate
from models.wire.messages import PhaseEnergy


class Hands:
    """Clocks that stand where they were put."""

    def __init__(self) -> None:
        self.now_s, self.cpu_s = 100.0, 7.0

    def clock(self) -> float:
        return self.now_s

    def cpu_clock(self) -> float:
        return self.cpu_s

    def pass_by(self, wall_s: float, cpu_s: float = 0.0) -> None:
        self.now_s += wall_s
        self.cpu_s += cpu_s


class ScriptedMeter:
    """Says what it was told to, window by window, and remembers the windows."""

    source, scope, state = "scripted", "board", "measured"

    def __init__(self, *says: Measurement) -> None:
        self.says, self.windows = list(says), []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def power_w(self) -> float | None:
        return None

    def measure(self, start_s: float, end_s: float, cpu_s: float) -> Measurement:
        self.windows.append((start_s, end_s))
        return self.says.pop(0) if self.says else Measurement(end_s - start_s, "measured")


def by_phase(figures: tuple[PhaseEnergy, ...]) -> dict[str, PhaseEnergy]:
    assert len({figure.phase for figure in figures}) == len(figures)
    return {figure.phase: figure for figure in figures}


def test_phases_sum_to_the_whole_time_and_to_all_cpu_seconds() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    hands.pass_by(2.0, 0.1)
    ledger.switch("communicate")
    hands.pass_by(3.0, 0.5)
    ledger.switch("train")
    hands.pass_by(5.0, 4.0)
    ledger.switch("communicate")
    hands.pass_by(1.0, 0.25)
    figures = by_phase(ledger.take("wait"))
    assert {phase: figure.duration_s for phase, figure in figures.items()} == {
        "wait": 2.0,
        "communicate": 4.0,
        "train": 5.0,
    }
    assert {phase: figure.cpu_s for phase, figure in figures.items()} == pytest.approx(
        {"wait": 0.1, "communicate": 0.75, "train": 4.0}
    )
    assert figures["communicate"].energy_j == 4.0
    # Each window begins where the one before it ended.
    edges = [edge for window in meter.windows for edge in window]
    assert edges == [100, 102, 102, 105, 105, 110, 110, 111]


def test_windows_of_other_phases_are_cut_out_of_the_one_they_lie_in() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    ledger.switch("train")
    hands.pass_by(10.0, 8.0)
    ledger.switch(
        "communicate",
        [
            Window("affinity", 106.0, 108.0, 3.0),
            Window("train", 102.0, 106.0, 4.0),  # the phase itself: nothing to cut
            Window("affinity", 101.0, 102.0, 1.0),
        ],
    )
    figures = by_phase(ledger.take("wait"))
    assert figures["affinity"].duration_s == 3.0
    assert figures["affinity"].cpu_s == 4.0
    assert figures["train"].duration_s == 7.0
    assert figures["train"].cpu_s == pytest.approx(4.0)
    assert sorted(meter.windows) == [(100, 101), (101, 102), (102, 106), (106, 108), (108, 110)]


def test_windows_that_reach_beyond_are_clipped_and_those_outside_are_left_out() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    ledger.switch("evaluate")
    hands.pass_by(4.0, 1.0)
    outside = [
        Window("train", 90.0, 100.5, 0.25),
        Window("train", 103.5, 120.0, 0.25),
        Window("train", 130.0, 131.0, 9.0),
    ]
    ledger.switch("wait", outside)
    figures = by_phase(ledger.take("wait"))
    assert figures["train"].duration_s == 1.0
    assert figures["evaluate"].duration_s == 3.0
    assert figures["evaluate"].cpu_s == 0.5
    assert sum(figure.duration_s for figure in figures.values()) == 4.0


def test_more_cpu_in_the_parts_than_in_the_whole_is_never_a_negative_rest() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    ledger.switch("train")
    hands.pass_by(4.0, 1.0)
    ledger.switch("wait", [Window("affinity", 101.0, 102.0, 1.5)])
    assert by_phase(ledger.take("wait"))["train"].cpu_s == 0.0


def test_what_follows_a_report_belongs_to_the_next_one_of_that_job() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    hands.pass_by(1.0)
    ledger.take("communicate")
    hands.pass_by(2.0)  # the upload ends after the report
    ledger.switch("wait")
    hands.pass_by(5.0)
    ledger.begin("job")
    figures = by_phase(ledger.take("wait"))
    assert {phase: figure.duration_s for phase, figure in figures.items()} == {"communicate": 2.0, "wait": 5.0}
    assert ledger.take("wait") == (), "a figure is handed over once"


def test_the_time_between_two_jobs_belongs_to_the_one_before_and_is_told_with_its_next_report() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    hands.pass_by(50.0, 3.0)  # before the device's first order: nobody's
    reported: dict[str, list[dict[str, float]]] = {"first": [], "second": []}
    for job in ("first", "second", "first", "second"):
        ledger.begin(job)
        hands.pass_by(3.0)
        ledger.switch("train")
        hands.pass_by(10.0, 8.0)
        figures = by_phase(ledger.take("communicate"))
        reported[job].append({phase: figure.duration_s for phase, figure in figures.items()})
        hands.pass_by(2.0, 0.5)  # the upload ends after the report
        ledger.switch("wait")
        hands.pass_by(5.0)  # until the other job's order
    alone = {"wait": 3.0, "train": 10.0}
    with_what_followed = {"communicate": 2.0, "wait": 8.0, "train": 10.0}
    assert reported == {"first": [alone, with_what_followed], "second": [alone, with_what_followed]}
    assert min(start_s for start_s, _ in meter.windows) == 150.0


def test_accounts_of_ended_jobs_do_not_pile_up() -> None:
    hands, meter = Hands(), ScriptedMeter()
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    for number in range(MAX_ACCOUNTS + 1):
        ledger.begin(f"job {number}")
        hands.pass_by(1.0)
    ledger.begin("job 1")
    assert by_phase(ledger.take("wait"))["wait"].duration_s == 1.0, "the oldest that is kept"
    ledger.begin("job 0")
    assert ledger.take("wait") == (), "the one that had no order for longest is gone"


@pytest.mark.parametrize(
    "says, state, energy_j",
    [
        ([Measurement(2.0, "measured"), Measurement(3.0, "measured")], "measured", 5.0),
        ([Measurement(2.0, "measured"), Measurement(3.0, "estimated")], "estimated", 5.0),
        ([Measurement(2.0, "measured"), Measurement(3.0, "partial", reason="a gap")], "partial", 5.0),
        ([Measurement(2.0, "estimated"), Measurement(3.0, "partial", reason="a gap")], "partial", 5.0),
        ([Measurement(2.0, "measured"), Measurement(None, "missing", reason="unplugged")], "partial", 2.0),
        (
            [Measurement(None, "missing", reason="unplugged"), Measurement(None, "missing", reason="unplugged")],
            "missing",
            None,
        ),
    ],
)
def test_a_phase_is_known_as_badly_as_its_worst_window(
    says: list[Measurement], state: str, energy_j: float | None
) -> None:
    hands, meter = Hands(), ScriptedMeter(*says)
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    for _ in says:
        hands.pass_by(1.0)
        ledger.switch("wait")
    (figure,) = ledger.take("wait")
    assert (figure.state, figure.energy_j) == (state, energy_j)
    reasons = [energy.reason for energy in says if energy.reason]
    assert figure.reason == (reasons[0] if reasons else "")
    assert (figure.source, figure.scope) == ("scripted", "board")


def test_without_a_meter_every_phase_is_missing_and_never_zero() -> None:
    hands = Hands()
    ledger = Ledger(NoMeter("switched off"), hands.cpu_clock, hands.clock)
    ledger.begin("job")
    hands.pass_by(3.0, 1.0)
    (figure,) = ledger.take("wait")
    assert (figure.energy_j, figure.state, figure.reason) == (None, "missing", "switched off")
    assert figure.duration_s == 3.0


def test_estimates_of_all_phases_add_up_to_the_estimate_of_the_whole() -> None:
    hands = Hands()
    ledger = Ledger(CpuTimeEstimate(3.0, hands.cpu_clock, hands.clock), hands.cpu_clock, hands.clock)
    ledger.begin("job")
    ledger.switch("train")
    hands.pass_by(10.0, 8.0)
    ledger.switch("communicate", [Window("affinity", 102.0, 104.0, 1.5)])
    figures = by_phase(ledger.take("wait"))
    assert figures["affinity"].energy_j == pytest.approx(4.5)
    assert sum(figure.energy_j or 0.0 for figure in figures.values()) == pytest.approx(8.0 * 3.0)
    assert {figure.state for figure in figures.values()} == {"estimated"}


def test_a_phase_tells_how_far_its_windows_are_to_be_trusted() -> None:
    hands = Hands()
    whole = Measurement(6.0, "measured", n_samples=30, coverage=1.0, max_gap_s=0.1, uncertainty_j=0.25, flags=("hot",))
    half = Measurement(3.0, "partial", n_samples=5, coverage=0.5, max_gap_s=0.7, uncertainty_j=0.5)
    half = dataclasses.replace(half, flags=("hot", "x" * 99))
    meter = ScriptedMeter(whole, half, Measurement(None, "missing", reason="unplugged"))
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    for wall_s in (3.0, 1.0, 4.0):
        hands.pass_by(wall_s)
        ledger.switch("wait")
    (figure,) = ledger.take("wait")
    assert figure.coverage == pytest.approx((3.0 + 0.5) / 8.0)
    assert figure.uncertainty_j == pytest.approx(0.75), "the same meter: off the same way each time"
    assert (figure.n_samples, figure.max_gap_s) == (35, 0.7)
    assert figure.flags == ("hot", "x" * 64)
    assert (figure.energy_j, figure.state, figure.reason) == (9.0, "partial", "unplugged")


def test_an_estimate_claims_no_certainty() -> None:
    hands = Hands()
    ledger = Ledger(CpuTimeEstimate(3.0, hands.cpu_clock, hands.clock), hands.cpu_clock, hands.clock)
    ledger.begin("job")
    hands.pass_by(10.0, 8.0)
    (figure,) = ledger.take("wait")
    assert (figure.coverage, figure.uncertainty_j, figure.n_samples, figure.max_gap_s) == (1.0, None, 0, None)


@pytest.mark.parametrize(
    "says, state", [(("measured", "calibrated"), "calibrated"), (("calibrated", "estimated"), "estimated")]
)
def test_calibrated_is_between_measured_and_estimated(says: tuple[str, str], state: str) -> None:
    hands = Hands()
    meter = ScriptedMeter(*(Measurement(1.0, each) for each in says))  # type: ignore[arg-type]
    ledger = Ledger(meter, hands.cpu_clock, hands.clock)  # type: ignore[arg-type]
    ledger.begin("job")
    for _ in says:
        hands.pass_by(1.0)
        ledger.switch("wait")
    assert ledger.take("wait")[0].state == state
