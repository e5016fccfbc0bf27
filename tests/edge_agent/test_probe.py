"""The affinity probe: numbers by hand, a real optimizer as reference, finite differences, and no trace left."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edge_agent.trainer.probe import AffinityMeter, lookahead
from models.losses import Batch, batch_losses
from models.networks import NetworkParts, build_network
from models.networks.multitask import MultiTaskNet

TASKS = ("keypoints2d", "edge_texture")


class Scale(nn.Module):
    """One weight times the picture's first channel."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, maps: Tensor) -> Tensor:
        return self.weight * maps[:, :1]


def _linear(encoder: float, first: float, second: float) -> MultiTaskNet:
    return MultiTaskNet(Scale(encoder), {TASKS[0]: Scale(first), TASKS[1]: Scale(second)}, stride=1).train()


def _one_pixel(first: float, second: float) -> Batch:
    rgb = torch.ones(2, 3, 1, 1)
    return Batch(rgb, {TASKS[0]: torch.full((2, 1, 1, 1), first), TASKS[1]: torch.full((2, 1, 1, 1), second)})


def _optimizer(network: nn.Module, **settings: float) -> torch.optim.SGD:
    return torch.optim.SGD(network.parameters(), **{"lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, **settings})


def test_two_linear_tasks_by_hand() -> None:
    """Encoder weight 1, heads 1 and 2, labels 3 and 0, so losses |1 - 3| = 2 and |2 - 0| = 2.

    dL/dw is -1 for the first task and +2 for the second, times 1/sqrt(2) for two tasks; lr is sqrt(2)/10. The first
    task's step leads to w = 1.1: losses 1.9 and 2.2. The second's to w = 0.8: losses 2.2 and 1.6.
    """
    network = _linear(1.0, 1.0, 2.0)
    affinity = lookahead(network, _optimizer(network, lr=0.1 * math.sqrt(2)), _one_pixel(3.0, 0.0), TASKS)
    assert affinity is not None
    np.testing.assert_allclose(affinity, [[0.05, -0.1], [-0.1, 0.2]], atol=1e-6)


def test_momentum_and_decay_take_part_by_hand() -> None:
    """As above with lr 0.1, weight decay 0.5 and a momentum buffer of 1 under momentum 0.9.

    The first task's step: gradient -1/sqrt(2) + 0.5, velocity 0.9 + 0.5 - 1/sqrt(2) = 0.692893, w = 0.9307107; losses
    2.0692893 and 1.8614214. The second's: velocity 0.9 + 0.5 + sqrt(2) = 2.8142136, w = 0.7185786; losses 2.2814214
    and 1.4371573.
    """
    network = _linear(1.0, 1.0, 2.0)
    optimizer = _optimizer(network, momentum=0.9, weight_decay=0.5)
    optimizer.state[network.encoder.weight]["momentum_buffer"] = torch.tensor(1.0)
    affinity = lookahead(network, optimizer, _one_pixel(3.0, 0.0), TASKS)
    assert affinity is not None
    expected = [[-0.0692893 / 2, 0.1385786 / 2], [-0.2814214 / 2, 0.5628427 / 2]]
    np.testing.assert_allclose(affinity, expected, atol=1e-6)


def _tiny(tasks: tuple[str, ...], seed: int = 0) -> MultiTaskNet:
    def encoder() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(0.1))

    def head(channels: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(4, channels, 1), nn.BatchNorm2d(channels))

    parts = NetworkParts(encoder, head, stride=1)
    return build_network("tiny", tasks, 8, seed, networks={"tiny": parts}).train()


def _batch(tasks: tuple[str, ...], seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    channels = {"depth_zbuffer": 1, "normal": 3, "keypoints2d": 1}
    targets = {name: torch.randn(4, channels[name], 8, 8, generator=random) for name in tasks if name in channels}
    if "segment_semantic" in tasks:
        targets["segment_semantic"] = torch.randint(1, 18, (4, 1, 8, 8), generator=random)
    return Batch(torch.rand(4, 3, 8, 8, generator=random), targets, torch.ones(4, 1, 8, 8))


FOUR = ("segment_semantic", "depth_zbuffer", "normal", "keypoints2d")


def _without_dropout(network: MultiTaskNet) -> MultiTaskNet:
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return network


def _train_a_little(network: MultiTaskNet, optimizer: torch.optim.SGD, steps: int) -> None:
    for step in range(steps):
        batch = _batch(network.tasks, seed=100 + step)
        optimizer.zero_grad()
        sum(loss.mean() for loss in batch_losses(network.tasks, network(batch.rgb), batch).values()).backward()  # type: ignore[union-attr]
        optimizer.step()


@pytest.mark.parametrize("nesterov", [False, True])
def test_every_step_is_the_one_the_real_optimizer_takes(nesterov: bool) -> None:
    network = _without_dropout(_tiny(FOUR))
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01, "nesterov": nesterov}
    optimizer = torch.optim.SGD(network.parameters(), **settings)
    _train_a_little(network, optimizer, steps=3)
    batch = _batch(FOUR)
    affinity = lookahead(network, optimizer, batch, FOUR)
    assert affinity is not None

    for row, source in enumerate(FOUR):
        other = copy.deepcopy(network)
        stepper = torch.optim.SGD(other.parameters(), **settings)
        stepper.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        losses = batch_losses(FOUR, other(batch.rgb), batch)
        before = [float(loss.mean().detach()) for loss in losses.values()]
        stepper.zero_grad()
        losses[source].mean().backward()  # type: ignore[no-untyped-call]
        for name, parameter in other.named_parameters():
            if not name.startswith("encoder."):
                parameter.grad = None
        stepper.step()
        with torch.no_grad():
            after = [float(loss.mean()) for loss in batch_losses(FOUR, other(batch.rgb), batch).values()]
        np.testing.assert_allclose(affinity[row], 1 - np.array(after) / np.array(before), atol=2e-6)


def test_small_steps_agree_with_finite_differences() -> None:
    """To first order, affinity[j, i] = lr <dL_j, dL_i> / (sqrt(n) L_i); derivatives by moving each weight a little."""
    network = _without_dropout(_tiny(("segment_semantic", "keypoints2d"))).double()
    tasks = network.tasks
    batch = _batch(tasks)
    batch = Batch(batch.rgb.double(), {n: t.double() if t.is_floating_point() else t for n, t in batch.targets.items()})
    weights = [p for name, p in network.named_parameters() if name.startswith("encoder.")]

    def losses() -> np.ndarray:
        with torch.no_grad():
            return np.array([float(loss.mean()) for loss in batch_losses(tasks, network(batch.rgb), batch).values()])

    gradients = []
    for weight in weights:
        for index in np.ndindex(tuple(weight.shape)):
            kept = float(weight.data[index])
            weight.data[index] = kept + 1e-3
            up = losses()
            weight.data[index] = kept - 1e-3
            gradients.append((up - losses()) / 2e-3)
            weight.data[index] = kept
    gradient = np.stack(gradients)  # [weight, task]
    lr = 1e-3
    expected = lr * gradient.T @ gradient / math.sqrt(len(tasks)) / losses()[np.newaxis, :]
    affinity = lookahead(network, torch.optim.SGD(network.parameters(), lr=lr), batch, tasks)
    assert affinity is not None
    np.testing.assert_allclose(affinity, expected, rtol=0.1, atol=2e-6)


def test_the_probe_leaves_no_trace() -> None:
    network = _tiny(FOUR)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    _train_a_little(network, optimizer, steps=2)
    batch = _batch(FOUR)
    state = copy.deepcopy(network.state_dict())
    momentum = copy.deepcopy(optimizer.state_dict())
    gradients = [None if p.grad is None else p.grad.clone() for p in network.parameters()]
    random = torch.get_rng_state()
    assert any(name.endswith("num_batches_tracked") for name in state)

    assert lookahead(network, optimizer, batch, FOUR) is not None

    assert all(torch.equal(state[name], value) for name, value in network.state_dict().items())
    after = optimizer.state_dict()
    assert after["param_groups"] == momentum["param_groups"]
    assert after["state"].keys() == momentum["state"].keys()
    for key, entry in momentum["state"].items():
        assert torch.equal(entry["momentum_buffer"], after["state"][key]["momentum_buffer"])
    for gradient, parameter in zip(gradients, network.parameters(), strict=True):
        assert gradient is not None
        assert torch.equal(gradient, parameter.grad)
    assert torch.equal(random, torch.get_rng_state())
    assert network.training


def test_a_probe_before_the_first_step_gives_the_optimizer_no_state() -> None:
    network = _tiny(FOUR)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    assert lookahead(network, optimizer, _batch(FOUR), FOUR) is not None
    assert not optimizer.state_dict()["state"]
    assert all(parameter.grad is None for parameter in network.parameters())


def test_rows_are_sources_in_the_order_given() -> None:
    network = _without_dropout(_tiny(FOUR))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    straight = lookahead(network, optimizer, _batch(FOUR), FOUR)
    turned = lookahead(network, optimizer, _batch(FOUR), FOUR[::-1])
    assert straight is not None
    assert turned is not None
    np.testing.assert_allclose(turned, straight[::-1, ::-1], atol=1e-6)


@pytest.mark.parametrize("label", [0.0, math.nan, math.inf])
def test_zero_and_non_finite_losses_are_counted_out(label: float) -> None:
    network = _linear(0.0, 1.0, 1.0)
    meter = AffinityMeter(TASKS, every=1)
    meter.add(lookahead(network, _optimizer(network), _one_pixel(1.0, label), TASKS))
    assert (meter.batches, meter.result()) == (0, None)


def test_a_step_into_infinity_is_counted_out() -> None:
    network = _linear(1.0, 1.0, 2.0)
    assert lookahead(network, _optimizer(network, lr=math.inf), _one_pixel(3.0, 0.0), TASKS) is None


def test_sums_keep_negative_values_and_count_batches() -> None:
    meter = AffinityMeter(TASKS, every=1)
    meter.add(np.array([[0.1, -0.3], [0.2, 0.4]]))
    meter.add(None)
    meter.add(np.array([[0.1, 0.1], [-0.5, 0.2]]))
    result = meter.result()
    assert result is not None
    assert result.batches == 2
    np.testing.assert_allclose(result.sums, [[0.2, -0.2], [-0.3, 0.6]])


@pytest.mark.parametrize(
    ("every", "batches_a_round", "due"),
    [
        (10, 3, [(0, 0), (3, 1), (6, 2), (10, 0)]),
        (2, 3, [(r, i) for r in range(12) for i in range(3) if (3 * r + i) % 2 == 0]),
        (0, 3, []),
        (1, 1, [(r, 0) for r in range(12)]),
    ],
)
def test_probes_keep_their_rate_over_short_rounds(every: int, batches_a_round: int, due: list[tuple[int, int]]) -> None:
    found = [
        (r, i)
        for r in range(12)
        for i in range(batches_a_round)
        if AffinityMeter(TASKS, every, first_batch=r * batches_a_round).due(i)
    ]
    assert found == due
