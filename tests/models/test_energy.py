"""A sum of joules is as good as its weakest part."""

from __future__ import annotations

import itertools

import pytest

from models.energy import EnergyTotal, add_energy, merge_energy, summarise_energy, total_energy, weakest_state
from models.wire.messages import EnergyState, PhaseEnergy


def figure(state: EnergyState, joules: float | None = 1.0, scope: str = "board", source: str = "ina") -> PhaseEnergy:
    return PhaseEnergy("train", 2.0, 1.0, joules, state, source, scope)


MEASURED, CALIBRATED, ESTIMATED, PARTIAL, MISSING = (
    figure("measured"), figure("calibrated"), figure("estimated"), figure("partial"), figure("missing", None)
)  # fmt: skip


@pytest.mark.parametrize(
    "parts, joules, state, reason",
    [
        ([MEASURED, MEASURED], 2.0, "measured", ""),
        ([ESTIMATED, ESTIMATED], 2.0, "estimated", ""),
        ([PARTIAL, PARTIAL], 2.0, "partial", "only a part"),
        ([MISSING, MISSING], None, "missing", "all 2 figures are missing"),
        ([], None, "missing", "no figure was reported"),
        ([MEASURED, MISSING], 1.0, "partial", "1 of 2 figures are missing"),
        ([ESTIMATED, MISSING, ESTIMATED], 2.0, "partial", "1 of 3"),
        ([MEASURED, ESTIMATED], 2.0, "estimated", "estimates are mixed with measurements"),
        ([CALIBRATED, CALIBRATED], 2.0, "calibrated", ""),
        ([MEASURED, CALIBRATED], 2.0, "calibrated", "only some figures are corrected by a calibration"),
        ([CALIBRATED, ESTIMATED], 2.0, "estimated", "estimates are mixed with measurements"),
        ([CALIBRATED, PARTIAL], 2.0, "partial", "only a part"),
        ([MEASURED, PARTIAL], 2.0, "partial", "only a part"),
        ([MEASURED, figure("measured", None)], 1.0, "partial", "1 of 2"),
        ([MEASURED, figure("missing", 5.0)], 1.0, "partial", "1 of 2"),
    ],
)
def test_states(parts: list[PhaseEnergy], joules: float | None, state: str, reason: str) -> None:
    for order in itertools.permutations(parts):
        said = summarise_energy(total_energy(order))
        assert (said.energy_j, said.state) == (joules, state)
        assert reason in said.reason
        assert bool(said.reason) == bool(reason)
        assert said.duration_s == 2.0 * len(parts)
        assert said.cpu_s == 1.0 * len(parts)


def test_scopes_and_sources_that_differ_are_named() -> None:
    said = summarise_energy(total_energy([figure("measured"), figure("measured", scope="module", source="jtop")]))
    assert (said.scope, said.source) == ("board + module", "ina + jtop")
    assert said.reason == "scopes differ: board, module"


def test_sums_of_sums_are_the_sum() -> None:
    parts = [MEASURED, ESTIMATED, MISSING, PARTIAL, told(4.0, 0.5, 0.25), told(8.0, 1.0, None), MEASURED]
    for cut in range(len(parts) + 1):
        merged = merge_energy(total_energy(parts[:cut]), total_energy(parts[cut:]))
        assert merged == total_energy(parts)
    assert add_energy(EnergyTotal(), MEASURED) == total_energy([MEASURED])


def test_no_joules_are_not_zero_joules() -> None:
    said = summarise_energy(total_energy([figure("measured", 0.0)]))
    assert (said.energy_j, said.state) == (0.0, "measured")


def told(
    joules: float | None,
    coverage: float | None,
    uncertainty_j: float | None,
    samples: int = 5,
    gap_s: float | None = 0.5,
) -> PhaseEnergy:
    state: EnergyState = "missing" if joules is None else "measured" if coverage == 1.0 else "partial"
    return PhaseEnergy(
        "train", 2.0, 1.0, joules, state, "ina", "board", "", coverage, uncertainty_j, samples, gap_s, ("hot",)
    )


def test_uncertainties_add_up_in_full_since_one_meter_is_off_the_same_way_every_time() -> None:
    said = summarise_energy(total_energy([told(10.0, 1.0, 0.3), told(20.0, 0.5, 0.6, gap_s=1.5), told(30.0, 1.0, 0.9)]))
    assert said.uncertainty_j == pytest.approx(1.8)
    assert said.coverage == pytest.approx(5.0 / 6.0)
    assert (said.n_samples, said.max_gap_s, said.flags) == (15, 1.5, ("hot",))


def test_what_no_figure_tells_is_not_told_of_their_sum() -> None:
    unsure = summarise_energy(total_energy([told(10.0, 1.0, 0.3), told(20.0, 1.0, None)]))
    assert (unsure.uncertainty_j, unsure.coverage) == (None, 1.0)
    older = summarise_energy(total_energy([told(10.0, 1.0, 0.3), MEASURED]))
    assert (older.uncertainty_j, older.coverage) == (None, None)
    gone = summarise_energy(total_energy([told(10.0, 1.0, 0.3), told(None, None, None, 0, None)]))
    assert (gone.uncertainty_j, gone.coverage, gone.state) == (pytest.approx(0.3), pytest.approx(0.5), "partial")
    assert summarise_energy(EnergyTotal()).coverage is None
    assert summarise_energy(total_energy([MISSING])).uncertainty_j is None


def test_the_weakest_state_names_them_all() -> None:
    assert weakest_state(["measured", "calibrated"]) == "calibrated"
    assert weakest_state(["calibrated", "estimated", "measured"]) == "estimated"
    assert weakest_state(["estimated", "partial"]) == "partial"
    assert weakest_state(["partial", "missing"]) == "missing"
    assert weakest_state([]) == "missing"
