"""Local training against figures worked by hand, each step of which is written out, and against slow obvious versions.

The model is one number w, shared, times a picture of ones; head i is a number h_i; the label of task i is y_i. So the
loss of task i is |h_i w - y_i|, and with s_i = sign(h_i w - y_i):  dL_i/dw = s_i h_i  and  dL_i/dh_i = s_i w.
With n tasks what reaches w is scaled by 1/sqrt(n), as in MAS; what reaches the heads is not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_agent.trainer.execution import Execution
from edge_agent.trainer.local import train
from edge_agent.trainer.meters import AffinityMeter
from edge_agent.trainer.objective import GradNorm, Pull, gradnorm_step, last_shared_weights
from edge_agent.trainer.passes import Pass, forward
from edge_agent.trainer.probe import lookahead
from edge_agent.trainer.protocol import WorkPhase
from edge_agent.trainer.spans import SpanRecorder
from models.losses import Batch, batch_losses
from models.networks import MultiTaskNet, build_network
from models.wire.job import TrainSettings

CPU = Execution()
TWO = ("keypoints2d", "edge_texture")
ROOT2 = math.sqrt(2)


class Times(nn.Module):
    """One number times the first channel."""

    def __init__(self, number: float) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.tensor(number))

    def forward(self, maps: Tensor) -> Tensor:
        return self.number * maps[:, :1]


def _model(shared: float, heads: Sequence[float], tasks: Sequence[str] = TWO) -> MultiTaskNet:
    return MultiTaskNet(Times(shared), {t: Times(h) for t, h in zip(tasks, heads, strict=True)}, stride=1).train()


class Ones:
    """Pictures of ones with the same labels for all; whatever the order of batches, each batch is the same."""

    def __init__(self, labels: Sequence[float], count: int = 2, tasks: Sequence[str] = TWO) -> None:
        self.labels, self.count = dict(zip(tasks, labels, strict=True)), count

    def __len__(self) -> int:
        return self.count

    def load(self, indices: Sequence[int]) -> Batch:
        n = len(indices)
        return Batch(torch.ones(n, 3, 1, 1), {t: torch.full((n, 1, 1, 1), y) for t, y in self.labels.items()})


def _no_step(phase: WorkPhase, done: int, total: int) -> None:
    """Nobody watches."""


def _settings(**changes: object) -> TrainSettings:
    plain: dict[str, object] = {"batch_size": 2, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "flips": False}
    return TrainSettings(**{**plain, **changes})  # type: ignore[arg-type]


def _backward(network: MultiTaskNet, batch: Batch) -> Pass:
    done = forward(network, batch, CPU, keep=True)
    done.means.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return done


def _numbers(network: MultiTaskNet) -> list[float]:
    """Shared number, then the heads'."""
    return [float(value.detach()) for value in network.parameters()]


@pytest.mark.parametrize("n", [1, 4, 9])
def test_the_encoders_gradient_is_that_of_the_sum_over_root_n_and_a_heads_is_whole(n: int) -> None:
    """n tasks, all with h = 2, w = 1, y = 0: each sends 2 to w, so 2n / sqrt(n) = 2 sqrt(n) arrives; heads get w = 1.

    n = 1: 2, n = 4: 4, n = 9: 6.
    """
    tasks = ("keypoints2d", "edge_texture", "rgb", "segment_semantic", "a", "b", "c", "d", "e")[:n]
    network = _model(1.0, [2.0] * n, tasks)
    outputs = network(torch.ones(2, 3, 1, 1))
    sum(output.mean() for output in outputs.values()).backward()  # type: ignore[union-attr]
    gradients = [float(value.grad) for value in network.parameters() if value.grad is not None]
    assert gradients == pytest.approx([{1: 2.0, 4: 4.0, 9: 6.0}[n]] + [1.0] * n)


def test_affinity_of_a_linear_model() -> None:
    """w = 2, h = (1, 3), y = (5, 2); lr 0.1 sqrt(2), so that the step of w along task j is 0.1 * s_j h_j.

    L_1 = |2 - 5| = 3 with s = -1, and L_2 = |6 - 2| = 4 with s = +1.
    Task 1's step: w = 2 - 0.1 * (-1) = 2.1, L_1 = 2.9, L_2 = 4.3: affinities 1 - 2.9/3 = 1/30, 1 - 4.3/4 = -3/40.
    Task 2's step: w = 2 - 0.1 * 3 = 1.7, L_1 = 3.3, L_2 = 3.1: affinities 1 - 3.3/3 = -1/10, 1 - 3.1/4 = 9/40.
    """
    network = _model(2.0, (1.0, 3.0))
    samples, spans = Ones((5.0, 2.0)), SpanRecorder()
    trained = train(network, samples, _settings(lr=0.1 * ROOT2), 0, AffinityMeter(every=1), spans, _no_step)
    assert trained.affinity is not None
    assert trained.affinity.batches == 1
    np.testing.assert_allclose(trained.affinity.sums, [[1 / 30, -3 / 40], [-1 / 10, 9 / 40]], atol=1e-6)
    assert [loss.loss_sum / loss.samples for loss in trained.losses] == pytest.approx([3.0, 4.0])
    # The step that followed was for both: w = 2 - 0.1 * (-1 + 3), h_1 = 1 + 0.1 sqrt(2) * 2, h_2 = 3 - the same.
    assert _numbers(network) == pytest.approx([1.8, 1 + 0.2 * ROOT2, 3 - 0.2 * ROOT2], abs=1e-6)


def test_momentum_takes_part_in_the_lookahead() -> None:
    """As above, w = 2, but momentum 0.5, and a step before has left the velocity 2 sqrt(2) with the shared number.

    Task 1: velocity 0.5 * 2 sqrt(2) - 1/sqrt(2) = sqrt(2) (1 - 1/2), times lr 0.1 sqrt(2): w = 2 - 0.1 = 1.9;
    L_1 = 3.1, L_2 = 3.7: 1 - 3.1/3 = -1/30 where it was +1/30, and 1 - 3.7/4 = 3/40 where it was -3/40.
    Task 2: velocity sqrt(2) + 3/sqrt(2) = 2.5 sqrt(2): w = 2 - 0.5 = 1.5; L_1 = 3.5, L_2 = 2.5: -1/6 and 3/8.
    """
    network = _model(2.0, (1.0, 3.0))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1 * ROOT2, momentum=0.5)
    optimizer.state[network.encoder.number]["momentum_buffer"] = torch.tensor(2 * ROOT2)
    batch = Ones((5.0, 2.0)).load(range(2))
    affinity = lookahead(network, optimizer, batch, _backward(network, batch), CPU)
    np.testing.assert_allclose(affinity.numpy(), [[-1 / 30, 3 / 40], [-1 / 6, 3 / 8]], atol=1e-6)


def test_fedprox_pulls_by_mu_times_the_way_gone() -> None:
    """One task, w = 2, h = 1, y = 5, so s = -1; lr 0.1, mu 0.5, two steps, the first from the base itself: no pull.

    Step 1: dw = -h = -1, dh = -w = -2:  w = 2.1, h = 1.2.
    Step 2: dw = -1.2 + 0.5 * 0.1 = -1.15, dh = -2.1 + 0.5 * 0.2 = -2.0:  w = 2.215, h = 1.4.
    Losses told are without the pull's term: |2 - 5| = 3 and |2.52 - 5| = 2.48.
    """
    network = _model(2.0, (1.0,), TWO[:1])
    samples, settings = Ones((5.0,), tasks=TWO[:1]), _settings(prox_mu=0.5, epochs=2)
    trained = train(network, samples, settings, 0, AffinityMeter(every=0), SpanRecorder(), _no_step)
    assert _numbers(network) == pytest.approx([2.215, 1.4], abs=1e-6)
    assert trained.losses[0].loss_sum == pytest.approx(2 * 3.0 + 2 * 2.48, abs=1e-5)


def test_fedprox_is_the_gradient_of_its_term() -> None:
    """The slow version: mu/2 * |w - w_base|^2 is written down and differentiated by torch, momentum and decay on."""
    tasks, mu, batch = ("normal", "keypoints2d"), 0.3, _pictures()
    settings = _settings(prox_mu=mu, epochs=3, batch_size=4, momentum=0.9, weight_decay=0.01)
    network, slow = (build_network("pi", tasks, 32, seed=0).train() for _ in range(2))
    train(network, _Fixed(batch), settings, 0, AffinityMeter(every=0), SpanRecorder(), _no_step)

    base = [value.detach().clone() for value in slow.parameters()]
    optimizer = torch.optim.SGD(slow.parameters(), lr=settings.lr, momentum=0.9, weight_decay=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        losses = sum(loss.mean() for loss in batch_losses(tasks, slow(batch.rgb), batch).values())
        away = sum((value - anchor).square().sum() for value, anchor in zip(slow.parameters(), base, strict=True))
        (losses + mu / 2 * away).backward()  # type: ignore[union-attr]
        optimizer.step()
    for fast, value in zip(network.parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(fast, value, atol=1e-5, rtol=1e-4)


def test_a_lookahead_under_fedprox_takes_the_pull_along() -> None:
    """After step 1 of a linear task pair the encoder is off its base, and the pull is part of each task's step.

    w = 2 from base 1.5, mu = 2, h = (1, 3), y = (5, 2), lr 0.1 sqrt(2): the pull is 2 * 0.5 = 1, times lr 0.1 sqrt(2).
    Task 1: w = 2.1 - 0.1 sqrt(2) = 1.9585786; task 2: w = 1.7 - 0.1 sqrt(2) = 1.5585786.
    """
    network = _model(2.0, (1.0, 3.0))
    pull = Pull(2.0, {network.encoder.number: torch.tensor(1.5)})  # type: ignore[dict-item]
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1 * ROOT2)
    batch = Ones((5.0, 2.0)).load(range(2))
    affinity = lookahead(network, optimizer, batch, _backward(network, batch), CPU, pull=pull)
    ends = np.array([1.9585786, 1.5585786])
    np.testing.assert_allclose(affinity.numpy(), np.stack([1 - (5 - ends) / 3, 1 - (3 * ends - 2) / 4], 1), atol=1e-6)


def test_gradnorms_weights_over_two_steps() -> None:
    """w = 2, h = (1, 3), y = (5, 2), alpha 1, weight step 0.1, weights (1, 1), L(0) = (6, 4); lr 0: the model stays.

    dL/dw = (-1, 3), norms g = (1, 3). L = (3, 4), L / L(0) = (1/2, 1), mean 3/4, so r = (2/3, 4/3).
    Step 1: G = (1, 3), mean 2, targets 2 r = (4/3, 8/3). G_1 is below its target: w_1 = 1 + 0.1 * 1 = 1.1. G_2 is
            above: w_2 = 1 - 0.1 * 3 = 0.7. They sum to 1.8, so times 2/1.8: (11/9, 7/9).
    Step 2: G = (11/9, 7/3), mean 16/9, targets (32/27, 64/27). G_1 = 33/27 is above: w_1 = 11/9 - 0.1 = 101/90.
            G_2 = 63/27 is below: w_2 = 7/9 + 0.3 = 97/90. They sum to 198/90: (101/99, 97/99).
    """
    network = _model(2.0, (1.0, 3.0))
    weighting = GradNorm(torch.ones(2), torch.tensor([6.0, 4.0]), alpha=1.0, lr=0.1)
    seen = []
    for epochs in (1, 2):
        weighting.weights = torch.ones(2)
        settings = _settings(lr=0.0, epochs=epochs)
        meter, spans = AffinityMeter(every=0), SpanRecorder()
        trained = train(network, Ones((5.0, 2.0)), settings, 0, meter, spans, _no_step, CPU, weighting)
        seen.append(trained.loss_weights)
    np.testing.assert_allclose(seen, [(11 / 9, 7 / 9), (101 / 99, 97 / 99)], atol=1e-6)


def test_gradnorms_weights_are_in_the_steps_gradient_and_not_in_what_is_told() -> None:
    """w = 2, h = (1, 3), y = (5, 2), weights (1.5, 0.5), lr 0.1 sqrt(2), weight step 0.

    dw = (1.5 * (-1) + 0.5 * 3) / sqrt(2) = 0: w stays 2. dh = (1.5 * (-2), 0.5 * 2) = (-3, 1).
    The affinities are those of the losses themselves, the weights taken out of their gradients: as without weights.
    """
    network, spans = _model(2.0, (1.0, 3.0)), SpanRecorder()
    weighting = GradNorm(torch.tensor([1.5, 0.5]), None, alpha=1.0, lr=0.0)
    settings = _settings(lr=0.1 * ROOT2)
    trained = train(network, Ones((5.0, 2.0)), settings, 0, AffinityMeter(every=1), spans, _no_step, CPU, weighting)
    assert _numbers(network) == pytest.approx([2.0, 1 + 0.3 * ROOT2, 3 - 0.1 * ROOT2], abs=1e-6)
    assert [loss.loss_sum / loss.samples for loss in trained.losses] == pytest.approx([3.0, 4.0])
    assert trained.affinity is not None
    np.testing.assert_allclose(trained.affinity.sums, [[1 / 30, -3 / 40], [-1 / 10, 9 / 40]], atol=1e-6)


def test_gradnorm_descends_the_gradient_of_its_own_loss() -> None:
    """The slow version: equation 2 written down and differentiated by torch, on a network, W found by its name."""
    tasks, batch, alpha = ("normal", "keypoints2d"), _pictures(), 1.5
    network = build_network("pi", tasks, 32, seed=0).train()
    weighting = GradNorm(torch.tensor([1.3, 0.7]), torch.tensor([0.5, 0.9]), alpha, lr=0.025)
    done = forward(network, batch, CPU, keep=True)
    weighting.total(done.means).backward(retain_graph=True)  # type: ignore[no-untyped-call]
    weighting.update(done)

    shared = last_shared_weights(done.features)
    weights = torch.tensor([1.3, 0.7], requires_grad=True)
    losses = [loss.mean() for loss in batch_losses(tasks, network(batch.rgb), batch).values()]
    norms = []
    for weight, loss in zip(weights, losses, strict=True):
        (gradient,) = torch.autograd.grad(weight * loss, shared, create_graph=True)
        norms.append(ROOT2 * gradient.norm())  # the network scales by 1/sqrt(2), GradNorm's paper does not
    rates = torch.stack(losses).detach() / torch.tensor([0.5, 0.9])
    target = (torch.stack(norms).mean() * (rates / rates.mean()) ** alpha).detach()
    (slope,) = torch.autograd.grad((torch.stack(norms) - target).abs().sum(), weights)
    moved = weights.detach() - 0.025 * slope
    torch.testing.assert_close(weighting.weights, moved * 2 / moved.sum(), atol=1e-5, rtol=1e-4)


def test_gradnorms_weights_stay_positive_and_sum_to_the_number_of_tasks() -> None:
    weights = torch.ones(3)
    for _ in range(50):
        weights = gradnorm_step(weights, torch.tensor([1.0, 100.0, 0.1]), torch.tensor([1.0, 0.1, 1.0]), 1.5, lr=0.5)
        assert bool((weights > 0).all())
        assert float(weights.sum()) == pytest.approx(3.0, rel=1e-5)


def test_gradnorm_starts_from_the_first_batchs_losses_and_lets_what_is_not_finite_pass_by() -> None:
    network, batch = _model(2.0, (1.0, 3.0)), Ones((5.0, 2.0)).load(range(2))
    weighting = GradNorm(torch.ones(2), None, alpha=1.0, lr=0.1)
    weighting.update(_backward(network, batch))
    assert weighting.reference is not None
    assert weighting.reference.tolist() == pytest.approx([3.0, 4.0])
    before, weighting.reference = weighting.weights, torch.zeros(2)
    network.zero_grad()
    weighting.update(_backward(network, batch))
    assert torch.equal(weighting.weights, before)


def test_the_last_shared_layer_is_found_by_where_it_runs_not_where_it_is_registered() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Conv2d(4, 4, 1)
            self.norm = nn.BatchNorm2d(4)
            self.first = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, rgb: Tensor) -> Tensor:
            features: Tensor = self.norm(self.last(self.first(rgb).relu())).relu()
            return features

    encoder = Backwards()
    network = MultiTaskNet(encoder, {"normal": nn.Conv2d(4, 3, 1)}, stride=1)
    assert last_shared_weights(network.represent(torch.rand(2, 3, 8, 8))) is encoder.last.weight
    frozen = MultiTaskNet(encoder.requires_grad_(False), {"normal": nn.Conv2d(4, 3, 1)}, stride=1)
    with pytest.raises(ValueError, match="plain sum"):
        last_shared_weights(frozen.represent(torch.rand(2, 3, 8, 8)))


def _pictures() -> Batch:
    random = torch.Generator().manual_seed(3)
    shape = (4, 3, 32, 32)
    targets = {
        "normal": torch.randn(shape, generator=random),
        "keypoints2d": torch.randn(4, 1, 32, 32, generator=random),
    }
    return Batch(torch.rand(shape, generator=random), targets, torch.ones(4, 1, 32, 32))


class _Fixed:
    """Four samples that always come as the same batch, in the same order."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def load(self, indices: Sequence[int]) -> Batch:
        assert sorted(indices) == [0, 1, 2, 3]
        return self.batch
