"""Faults of the research code released for MAS in the lookahead: numbers 4, 5 and 7.

Each check is held against our code, and against a small twin that has the fault, which it must reject.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest
import torch
from small_lab import CPU, THREE, Probe, backward, on_its_way, order, our_probe, pictures, trained
from torch import Tensor

from aggregator.affinity import AffinityTotal, Matrix, by_self_affinity, mean_affinity
from aggregator.schemes import find_scheme
from aggregator.schemes.plans import mas_decision
from edge_agent.trainer import local, passes, probe
from edge_agent.trainer.execution import Execution
from edge_agent.trainer.passes import Pass, forward
from edge_agent.trainer.probe import lookahead
from models.losses import Batch, SampleLosses
from models.networks import MultiTaskNet
from models.wire.job import JobSpec

# --- 4: momentum -----------------------------------------------------------------------------------------------------


def check_steps_are_the_optimizers(measure: Probe) -> None:
    network, optimizer = on_its_way("calm")
    batch = pictures()
    found = measure(network, optimizer, batch)
    for row, source in enumerate(THREE):
        other = copy.deepcopy(network)
        stepper = torch.optim.SGD(other.encoder.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
        for mine, parameter in zip(network.encoder.parameters(), other.encoder.parameters(), strict=True):
            stepper.state[parameter]["momentum_buffer"] = optimizer.state[mine]["momentum_buffer"].clone()
        done = forward(other, batch, CPU)
        other.zero_grad()
        done.means[THREE.index(source)].backward()
        stepper.step()
        with torch.no_grad():
            after = forward(other, batch, CPU).means
        np.testing.assert_allclose(found[row], (1 - after / done.means.detach()).numpy(), atol=2e-6)


def by_the_bare_gradient(network: MultiTaskNet, optimizer: torch.optim.SGD, batch: Batch) -> np.ndarray:
    return our_probe(network, torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.01), batch)


def test_fault_4_the_lookahead_has_momentum() -> None:
    check_steps_are_the_optimizers(our_probe)
    with pytest.raises(AssertionError):
        check_steps_are_the_optimizers(by_the_bare_gradient)


# --- 5: no trace -----------------------------------------------------------------------------------------------------


def check_no_trace(measure: Callable[..., object]) -> None:
    """`measure` as `lookahead`, between the backward of a step and the step."""
    network, optimizer = on_its_way("small")
    batch = pictures()
    done = backward(network, batch)

    def everything() -> dict[str, Tensor]:
        weights = {f"gradient of {name}": value.grad for name, value in network.named_parameters()}
        momenta = {f"momentum {i}": each["momentum_buffer"] for i, each in enumerate(optimizer.state.values())}
        found = {**network.state_dict(), **weights, **momenta, "random state": torch.get_rng_state()}
        return {name: value.clone() for name, value in found.items() if value is not None}

    before = everything()
    affinity = measure(network, optimizer, batch, done, CPU)
    assert np.isfinite(np.asarray(affinity)).all()
    after = everything()
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert not changed, changed
    assert network.training


def naive(*, statistics: bool, random: bool, momentum: bool) -> Callable[..., Tensor]:
    """A lookahead on the network itself that puts the weights back, and of the rest only what it is told to."""

    def measure(
        network: MultiTaskNet, optimizer: torch.optim.SGD, batch: Batch, done: Pass, execution: Execution, **_: object
    ) -> Tensor:
        weights = [value.detach().clone() for value in network.encoder.parameters()]
        gradients = [None if value.grad is None else value.grad.clone() for value in network.parameters()]
        buffers, state = [value.clone() for value in network.buffers()], copy.deepcopy(optimizer.state_dict())
        drawn, rows = torch.get_rng_state(), []
        for source in range(len(network.tasks)):
            network.zero_grad()
            forward(network, batch, CPU).means[source].backward()
            for head in network.heads.parameters():
                head.grad = None
            optimizer.step()
            with torch.no_grad():
                rows.append(1 - forward(network, batch, CPU).means.double() / done.means.detach().double())
                for value, kept in zip(network.encoder.parameters(), weights, strict=True):
                    value.copy_(kept)
            if momentum:
                optimizer.load_state_dict(copy.deepcopy(state))
        for value, gradient in zip(network.parameters(), gradients, strict=True):
            value.grad = gradient
        if statistics:
            for buffer, kept in zip(network.buffers(), buffers, strict=True):
                buffer.copy_(kept)
        if random:
            torch.set_rng_state(drawn)
        return torch.stack(rows)

    return measure


def check_probing_changes_no_update() -> None:
    measured, probed = trained(order("small", THREE, probe_every=1, epochs=3, momentum=0.9))
    _, plain = trained(order("small", THREE, epochs=3, momentum=0.9))
    assert measured.affinity is not None
    changed = [name for name in plain if not np.array_equal(plain[name], probed[name])]
    assert not changed, changed


def test_fault_5_a_probe_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    check_no_trace(lookahead)
    check_no_trace(naive(statistics=True, random=True, momentum=True))
    for forgotten, named in (("statistics", "running_mean"), ("random", "random state"), ("momentum", "momentum 0")):
        kept = {name: name != forgotten for name in ("statistics", "random", "momentum")}
        with pytest.raises(AssertionError, match=named):
            check_no_trace(naive(**kept))
    # And in a whole order: probing every batch changes no bit of what is sent, unlike one that moves BatchNorm.
    check_probing_changes_no_update()
    monkeypatch.setattr(local, "lookahead", naive(statistics=False, random=True, momentum=True))
    with pytest.raises(AssertionError, match="running_mean"):
        check_probing_changes_no_update()


# --- 7: the unit of a loss -------------------------------------------------------------------------------------------

SPEC = JobSpec(name="job", tasks=THREE, max_splits=2)
#: Of pictures, such that the unit of one task or another decides where raw affinities are compared.
SEEDS = (3, 8, 14)


def affinity_in_units(seed: int, units: Mapping[str, float], monkeypatch: pytest.MonkeyPatch) -> AffinityTotal:
    """Of a real network and a small step, each task's loss in units of its own."""

    def in_units(tasks: Sequence[str], outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, SampleLosses]:
        misses = {task: (outputs[task] - batch.targets[task]).square().flatten(1).mean(1) for task in tasks}
        every = torch.ones(len(batch), dtype=torch.bool)
        return {task: SampleLosses(miss * units.get(task, 1.0), every) for task, miss in misses.items()}

    network, _ = on_its_way("calm")
    still, exact = torch.optim.SGD(network.double().parameters(), lr=1e-5), pictures(seed)
    batch = Batch(exact.rgb.double(), {task: target.double() for task, target in exact.targets.items()})
    with monkeypatch.context() as patch:
        for module in (passes, probe):
            patch.setattr(module, "batch_losses", in_units)
        matrix = our_probe(network, still, batch)
    return AffinityTotal(THREE, tuple(map(tuple, matrix.tolist())), batches=1, rounds=(0,))


def split_of(total: AffinityTotal, affinity: str) -> tuple[tuple[str, ...], ...]:
    return mas_decision(msgspec.structs.replace(SPEC, options={"affinity": affinity}), total).splits


def check_units_do_not_matter(
    scaled: Callable[[Matrix], Matrix], affinity: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Losses as they are and one of them times a hundred are alike, but for the second order of a small step."""
    plain = affinity_in_units(seed, {}, monkeypatch)
    for task in THREE:
        loud = affinity_in_units(seed, {task: 100.0}, monkeypatch)
        np.testing.assert_allclose(scaled(mean_affinity(loud)), scaled(mean_affinity(plain)), rtol=0.02, atol=1e-4)
        assert split_of(loud, affinity) == split_of(plain, affinity), f"{task} times 100"


def as_measured(matrix: Matrix) -> Matrix:
    """Only larger, all entries alike, so that a check to so many digits sees them."""
    return tuple(tuple(value * 1e6 for value in row) for row in matrix)


def test_fault_7_the_unit_of_a_loss_changes_neither_affinities_nor_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in SEEDS:
        check_units_do_not_matter(by_self_affinity, "self", seed, monkeypatch)
        with pytest.raises(AssertionError, match="Mismatched elements"):
            check_units_do_not_matter(
                lambda matrix: tuple(map(tuple, np.asarray(matrix) * 1e6)), "self", seed, monkeypatch
            )
        with pytest.raises(AssertionError, match="times 100"):
            check_units_do_not_matter(by_self_affinity, "raw", seed, monkeypatch)


def check_the_default_is_documented(default: str) -> None:
    """The manual names the default of an option first; the published, raw affinities are what a job gets unasked."""
    manual = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    (row,) = [line for line in manual.splitlines() if line.startswith("| `mas` |")]
    assert re.findall(r'`affinity` = `"(\w+)"`', row) == [default]


def test_fault_7_raw_affinities_are_the_published_default_and_the_manual_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unasked = find_scheme("mas").options()
    check_the_default_is_documented(unasked.affinity)  # type: ignore[attr-defined]
    with pytest.raises(AssertionError):
        check_the_default_is_documented("self" if unasked.affinity == "raw" else "raw")  # type: ignore[attr-defined]
    total = affinity_in_units(SEEDS[0], {THREE[1]: 100.0}, monkeypatch)
    assert mas_decision(SPEC, total).splits == split_of(total, "raw") != split_of(total, "self")
