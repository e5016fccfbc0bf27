"""Faults of the research code released for MAS in what is minimised: number 12, and one of number 11.

Each check is held against our code, and against a small twin that has the fault, which it must reject. The numbers are
those of the linear model of small_lab.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import msgspec
import pytest
import torch
from small_lab import LINEAR, ROOT2, THREE, TWO, moved, order, pictures, trained

from aggregator.coordinator import spec_faults
from aggregator.schemes import find_scheme
from models.losses import Batch, batch_losses
from models.wire.job import JobSpec, TrainSettings
from models.wire.messages import TrainOrder

W, H1, H2 = LINEAR

# --- 11: the order of tasks ------------------------------------------------------------------------------------------

#: How far each number goes in one step of lr 0.1, with a weight for each task, tasks in this order.
Step = Callable[[Sequence[str], Mapping[str, float]], dict[str, float]]


def check_each_task_has_its_own_weight(step: Step) -> None:
    # dw = (1.5 * (-1) + 0.25 * 3) / sqrt(2), dh = (1.5 * (-2), 0.25 * 2).
    expected = {W: 0.075 / ROOT2, H1: 0.3, H2: -0.05}
    for tasks in (TWO, TWO[::-1]):
        assert step(tasks, dict(zip(TWO, (1.5, 0.25), strict=True))) == pytest.approx(expected, abs=1e-6), tasks


def our_step(tasks: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    given = tuple(weights[task] for task in tasks)
    return moved(order("linear", tasks, loss_weighting="gradnorm", gradnorm_lr=0.0, loss_weights=given))


def zipped_in_another_order(tasks: Sequence[str], weights: Mapping[str, float]) -> dict[str, float]:
    return our_step(tasks, dict(zip(TWO, (weights[task] for task in sorted(TWO)), strict=True)))


Figures = dict[str, dict[str, float]]


def check_results_do_not_depend_on_order(results: Callable[[Sequence[str]], Figures]) -> None:
    straight, turned = results(THREE), results(THREE[::-1])
    for task in THREE:
        assert turned[task] == pytest.approx(straight[task], rel=1e-5, abs=2e-6), task


def figures_of_an_order(tasks: Sequence[str]) -> Figures:
    """By task: its summed loss, and what its step does to every task."""
    done, _ = trained(order("calm", tasks, probe_every=1))
    assert done.affinity is not None
    rows = dict(zip(tasks, done.affinity.sums, strict=True))
    return {
        loss.task: {"loss": loss.loss_sum, **dict(zip(tasks, rows[loss.task], strict=True))} for loss in done.losses
    }


def losses_of_dicts(tasks: Sequence[str]) -> Figures:
    """Labels and predictions as dicts in the order of `tasks`, whose losses are asked for in another."""
    batch = pictures()
    outputs = {task: torch.zeros_like(batch.targets[task]) for task in tasks}
    turned = Batch(batch.rgb, {task: batch.targets[task] for task in tasks}, batch.mask)
    return {task: {"loss": loss.loss_sum} for task, loss in batch_losses(sorted(THREE), outputs, turned).items()}


def matched_by_place(tasks: Sequence[str]) -> Figures:
    return dict(zip(sorted(tasks), figures_of_an_order(tasks).values(), strict=True))


def test_fault_11_results_of_a_task_do_not_depend_on_the_order_of_tasks() -> None:
    check_each_task_has_its_own_weight(our_step)
    with pytest.raises(AssertionError):
        check_each_task_has_its_own_weight(zipped_in_another_order)
    check_results_do_not_depend_on_order(figures_of_an_order)
    check_results_do_not_depend_on_order(losses_of_dicts)
    with pytest.raises(AssertionError):
        check_results_do_not_depend_on_order(matched_by_place)


# --- 12: FedProx and GradNorm ----------------------------------------------------------------------------------------

Train = Callable[[TrainOrder], dict[str, float]]


def check_fedprox_pulls(train: Train) -> None:
    """Two steps of lr 0.1 sqrt(2) with mu 0.5; the first begins at the base itself, where nothing pulls.

    Step 1: dw = 2 / sqrt(2), dh = (-2, 2): w = 1.8, h = (1 + d, 3 - d) with d = 0.2 sqrt(2).
    Step 2: dw = (2 - 2 d) / sqrt(2) - 0.5 * 0.2 and dh = -(1.8 - 0.5 d), +(1.8 - 0.5 d).
    """
    d, lr = 0.2 * ROOT2, 0.1 * ROOT2
    way = d + lr * (1.8 - 0.5 * d)
    expected = {W: -0.2 - lr * ((2 - 2 * d) / ROOT2 - 0.1), H1: way, H2: -way}
    assert train(order("linear", TWO, lr=lr, epochs=2, prox_mu=0.5)) == pytest.approx(expected, abs=1e-6)


def without_pull(work: TrainOrder) -> dict[str, float]:
    return moved(msgspec.structs.replace(work, settings=msgspec.structs.replace(work.settings, prox_mu=0.0)))


def check_gradnorm_weighs(weights: Callable[[TrainOrder], Sequence[float]]) -> None:
    """alpha 1, weight step 0.1, first losses (6, 4).

    Norms of dL/dw are (1, 3), mean 2; L / L(0) = (1/2, 1), so the targets are 2 * (2/3, 4/3). The first is below its
    target and rises by 0.1 * 1, the second is above and falls by 0.1 * 3: (1.1, 0.7), which is scaled to the sum 2.
    """
    asked = {"loss_weighting": "gradnorm", "gradnorm_alpha": 1.0, "gradnorm_lr": 0.1}
    assert weights(order("linear", TWO, reference_losses=(6.0, 4.0), **asked)) == pytest.approx((11 / 9, 7 / 9))


def weights_after(work: TrainOrder) -> Sequence[float]:
    return trained(work)[0].loss_weights


def weights_untrained(work: TrainOrder) -> Sequence[float]:
    return weights_after(
        msgspec.structs.replace(work, settings=msgspec.structs.replace(work.settings, gradnorm_lr=0.0))
    )


def test_fault_12_fedprox_and_gradnorm_change_the_training_as_defined() -> None:
    check_fedprox_pulls(moved)
    with pytest.raises(AssertionError):
        check_fedprox_pulls(without_pull)
    check_gradnorm_weighs(weights_after)
    with pytest.raises(AssertionError):
        check_gradnorm_weighs(weights_untrained)
    # Weights are in what is minimised: see check_each_task_has_its_own_weight.


# --- 12: options arrive, or are refused ------------------------------------------------------------------------------


def job(scheme: str, **options: float) -> JobSpec:
    return JobSpec(name="job", tasks=TWO, scheme=scheme, options=options)


def check_options_arrive(settings: Callable[[JobSpec], TrainSettings]) -> None:
    assert settings(job("fedprox", mu=0.37)).prox_mu == 0.37
    told = settings(job("gradnorm", alpha=0.7, lr=0.03))
    assert (told.loss_weighting, told.gradnorm_alpha, told.gradnorm_lr) == ("gradnorm", 0.7, 0.03)


def settings_of_scheme(spec: JobSpec) -> TrainSettings:
    (plan,) = find_scheme(spec.scheme).first(spec, ()).splits
    assert plan.train is not None
    return plan.train


def settings_by_another_name(spec: JobSpec) -> TrainSettings:
    return msgspec.structs.replace(spec.train, prox_mu=spec.options.get("fedprox_mu", 0.0))


def check_misspelt_options_are_refused(faults: Callable[[JobSpec], list[str]]) -> None:
    sound = (job("fedprox", mu=0.1), job("gradnorm", alpha=1.0), job("mas", exactly=True), job("all-in-one"))
    assert [faults(spec) for spec in sound] == [[], [], [], []]
    for scheme, wrong in (("fedprox", "mue"), ("gradnorm", "aplha"), ("mas", "exactli"), ("all-in-one", "mu")):
        said = faults(job(scheme, **{wrong: 0.1}))
        assert len(said) == 1, scheme
        assert repr(wrong) in said[0]


def faults_of_known_options(spec: JobSpec) -> list[str]:
    """Looks at what it knows, and at nothing else."""
    return ["mu is below zero"] if float(str(spec.options.get("mu", 0.0))) < 0 else []


def test_fault_12_options_arrive_and_misspelt_ones_are_refused() -> None:
    check_options_arrive(settings_of_scheme)
    with pytest.raises(AssertionError):
        check_options_arrive(settings_by_another_name)
    check_misspelt_options_are_refused(spec_faults)
    with pytest.raises(AssertionError):
        check_misspelt_options_are_refused(faults_of_known_options)
    with pytest.raises(msgspec.ValidationError, match="unknown field `fedprox_mu`"):
        msgspec.convert({"fedprox_mu": 0.1}, TrainSettings)
