"""What a row cost, in several currencies, and as a share of one-by-one's.

Evaluation on held-out pictures is the experimenter's cost and is left out everywhere; MAS's lookahead is in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tools.experiment.report.rows import Bench, Row
from tools.experiment.report.stats import Interval, paired_ratio
from tools.experiment.run_record import Flops, Run


@dataclass(frozen=True, slots=True)
class Currency:
    """One way to count a cost; `local` where it compares only within one machine and device."""

    name: str
    title: str
    of: Callable[[Run], float | None]
    local: bool = False


def _work(flops: Flops | None) -> float | None:
    spent = 0.0 if flops is None else flops.train + flops.affinity
    return spent or None


def predicted_flops(run: Run) -> float | None:
    """Floating-point operations of training and lookahead foreseen before the run, from a + b*n."""
    return _work(run.predicted_flops)


def counted_flops(run: Run) -> float | None:
    """Floating-point operations of training and lookahead really done, by torch's counter."""
    return _work(run.flops)


def energy_j(run: Run) -> float | None:
    """Joules of everything but evaluation; where the record names no phases, joules of the whole run."""
    phases = {} if run.record is None else run.record.energy_by_phase
    known = [part.energy_j for phase, part in phases.items() if phase != "evaluate" and part.energy_j is not None]
    return sum(known) if known else run.energy.energy_j


def cpu_s(run: Run) -> float | None:
    """CPU seconds of everything but evaluation; where the record has no phases, of the whole run."""
    parts = [] if run.record is None else [part.cpu_s for part in run.record.energy if part.phase != "evaluate"]
    return sum(parts) or run.cpu_s or None


PREDICTED = Currency("predicted_flops", "predicted FLOPs", predicted_flops)
COUNTED = Currency("counted_flops", "counted FLOPs", counted_flops)
JOULES = Currency("energy_j", "joules", energy_j, local=True)
CPU_TIME = Currency("cpu_s", "CPU time", cpu_s, local=True)
CURRENCIES = (PREDICTED, COUNTED, JOULES, CPU_TIME)


def ratio_to_one_by_one(bench: Bench, row: Row, currency: Currency) -> Interval | None:
    """A row's cost over one-by-one's with the same seed, for local currencies on the same machine and device too."""
    base = bench.row("one-by-one")
    if base is None:
        return None
    ours, theirs = row.by_seed(currency.of), base.by_seed(currency.of)
    if currency is JOULES:
        # What is estimated and what is metered, or what covers more and what covers less, does not divide.
        ours = {seed: cost for seed, cost in ours.items() if seed in theirs and _meter(row, seed) == _meter(base, seed)}
    if currency.local:
        ours = {seed: cost for seed, cost in ours.items() if seed in theirs and _place(row, seed) == _place(base, seed)}
    return paired_ratio(ours, theirs)


def _meter(row: Row, seed: int) -> tuple[bool, str]:
    energy = row.done[seed].energy
    return energy.state == "estimated", energy.scope


def _place(row: Row, seed: int) -> tuple[str, str, str]:
    run = row.done[seed]
    return run.machine, run.device, run.precision


def prediction_errors(bench: Bench, row: Row) -> dict[int, float]:
    """Predicted over counted ratio to one-by-one, less one, by seed where all four figures are known."""
    base = bench.row("one-by-one")
    ours, theirs = _both(row), {} if base is None else _both(base)
    return {
        seed: (ours[seed][0] / theirs[seed][0]) / (ours[seed][1] / theirs[seed][1]) - 1
        for seed in sorted(ours.keys() & theirs.keys())
    }


def _both(row: Row) -> Mapping[int, tuple[float, float]]:
    foreseen, counted = row.by_seed(predicted_flops), row.by_seed(counted_flops)
    return {seed: (foreseen[seed], counted[seed]) for seed in foreseen.keys() & counted.keys()}
