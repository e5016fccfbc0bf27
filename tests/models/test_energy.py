"""A sum of joules is as good as its weakest part."""

from __future__ import annotations

import itertools

import pytest

from models.energy import EnergyTotal, add_energy, merge_energy, summarise_energy, total_energy
from models.wire.messages import EnergyState, PhaseEnergy


def figure(state: EnergyState, joules: float | None = 1.0, scope: str = "board", source: str = "ina") -> PhaseEnergy:
    return PhaseEnergy("train", 2.0, 1.0, joules, state, source, scope)


MEASURED, ESTIMATED, PARTIAL, MISSING = (
    figure("measured"), figure("estimated"), figure("partial"), figure("missing", None)
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
    parts = [MEASURED, ESTIMATED, MISSING, PARTIAL, MEASURED]
    for cut in range(len(parts) + 1):
        merged = merge_energy(total_energy(parts[:cut]), total_energy(parts[cut:]))
        assert merged == total_energy(parts)
    assert add_energy(EnergyTotal(), MEASURED) == total_energy([MEASURED])


def test_no_joules_are_not_zero_joules() -> None:
    said = summarise_energy(total_energy([figure("measured", 0.0)]))
    assert (said.energy_j, said.state) == (0.0, "measured")
