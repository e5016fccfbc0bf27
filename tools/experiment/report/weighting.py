"""GradNorm's gradients in records that left them out: added from the network, so that its FLOPs are whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import msgspec

from models.wire.job import JobSpec
from tools.experiment.run_record import Flops, Run

if TYPE_CHECKING:
    from models.networks.flops import FlopTable, SampleFlops


def completed(runs: Sequence[Run]) -> tuple[tuple[Run, ...], tuple[str, ...]]:
    """The runs, FLOPs of GradNorm added where a record has none, and a note for the reader where that was done."""
    lacking = [run for run in runs if _lacks(run)]
    if not lacking:
        return tuple(runs), ()
    from models.networks import NETWORKS
    from models.networks.flops import FlopTable  # torch, for old records alone

    table = FlopTable()
    found = tuple(_whole(run, table) if _lacks(run) and run.spec.network in NETWORKS else run for run in runs)
    rows = ", ".join(dict.fromkeys(run.row for run in lacking))
    unknown = dict.fromkeys(run.spec.network for run in lacking if run.spec.network not in NETWORKS)
    note = (
        f"{rows}: recorded before GradNorm’s gradients were counted; this report has added them to the counted and the "
        "predicted FLOPs, from the pictures trained on and the network"
    )
    left_out = f"; not for {', '.join(unknown)}, a network that is not installed here" if unknown else ""
    return found, (note + left_out,)


def weighted(spec: JobSpec) -> bool:
    """Whether a job's losses are weighted by GradNorm."""
    return spec.scheme == "gradnorm" or spec.train.loss_weighting == "gradnorm"


def _lacks(run: Run) -> bool:
    return weighted(run.spec) and run.record is not None and run.flops.weighting is None


def _whole(run: Run, table: FlopTable) -> Run:
    """Training's FLOPs times what GradNorm adds to a step, by the splits that were trained."""
    counted, predicted = _share(run, table.count), _share(run, table.predict)
    before = run.predicted_flops
    return msgspec.structs.replace(
        run,
        flops=_with(run.flops, counted),
        predicted_flops=None if before is None else _with(before, predicted),
    )


def _with(flops: Flops, share: float) -> Flops:
    return msgspec.structs.replace(flops, weighting=flops.train * share)


def _share(run: Run, cost: Callable[[str, Sequence[str], int], SampleFlops]) -> float:
    spec, train, weighting = run.spec, 0.0, 0.0
    for split in run.record.splits if run.record else ():
        picture, pictures = cost(spec.network, split.tasks, spec.size), sum(done.samples for done in split.rounds)
        train += pictures * picture.train
        weighting += pictures * picture.gradnorm
    return weighting / train if train else 0.0
