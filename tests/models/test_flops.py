"""Operations of a network: worked by hand, counted by torch, predicted, and those of the trainer's own steps."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edge_agent.trainer.execution import Execution
from edge_agent.trainer.objective import GradNorm
from edge_agent.trainer.passes import Pass, forward
from edge_agent.trainer.probe import lookahead
from models.losses import Batch
from models.networks import NETWORKS, MultiTaskNet, NetworkParts, build_network
from models.networks.flops import FlopTable, count_flops, flop_counter, layer_macs, predict_flops
from models.tasks import TASKS, parse_tasks

FIVE = parse_tasks("sdnkt")


class _Toy(nn.Module):
    """3 -> 4 channels at stride 2, then a depthwise 3x3 of those 4."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 1, stride=2)
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)

    def forward(self, rgb: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.depthwise(self.first(rgb))
        return result


TOY = {
    "toy": NetworkParts(
        _Toy, lambda channels: nn.ConvTranspose2d(4, channels, 2, 2), 2,
        lambda channels: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, channels)),
    )
}  # fmt: skip
# At 8 x 8 the encoder's two layers stand on 4 x 4 positions.
FIRST, DEPTHWISE = 16 * 3 * 4, 16 * 4 * 9
NORMAL = 16 * 4 * 3 * 4  # a transposed convolution works at each position of its input
DISTANCE = 4 * 1


def test_multiplications_worked_by_hand() -> None:
    macs = layer_macs("toy", ("normal", "distance"), 8, TOY)
    assert macs == {"encoder": FIRST + DEPTHWISE, "normal": NORMAL, "distance": DISTANCE}


def test_counts_worked_by_hand() -> None:
    """The picture needs no gradient, so the first layer's backward is half of the others'."""
    counted = count_flops("toy", ("normal", "distance"), 8, TOY)
    encoder, heads = FIRST + DEPTHWISE, NORMAL + DISTANCE
    assert counted.evaluate == 2 * (encoder + heads)
    assert counted.train == 2 * (2 * FIRST + 3 * DEPTHWISE + 3 * heads)
    assert counted.probe == 2 * (2 * (encoder + heads) + (FIRST + 2 * DEPTHWISE))


def test_what_is_predicted_is_a_plus_b_n() -> None:
    one, four = (predict_flops("xception-small", tasks, 64) for tasks in (("normal",), parse_tasks("ndkt")))
    encoder = layer_macs("xception-small", ("normal",), 64)["encoder"]
    heads = [layer_macs("xception-small", (task,), 64)[task] for task in parse_tasks("ndkt")]
    assert four.evaluate == pytest.approx(2 * (encoder + sum(heads)))
    assert (one.train, four.train) == (pytest.approx(3 * one.evaluate), pytest.approx(3 * four.evaluate))
    assert one.probe == pytest.approx(one.evaluate)
    assert four.probe == pytest.approx(4 * four.evaluate + 3 * 2 * 2 * encoder)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tasks", [("normal",), ("class_scene", "normal"), FIVE], ids=["one", "mixed", "five"])
def test_what_is_predicted_is_what_torch_does_within_three_percent(name: str, tasks: tuple[str, ...]) -> None:
    counted, predicted = count_flops(name, tasks, 64), predict_flops(name, tasks, 64)
    assert predicted.evaluate == counted.evaluate
    assert predicted.train == pytest.approx(counted.train, rel=0.03)
    assert predicted.probe == pytest.approx(counted.probe, rel=0.03)
    assert predicted.gradnorm == pytest.approx(counted.gradnorm, rel=0.03)


PICTURES = 3


def kept_pass(name: str, tasks: tuple[str, ...]) -> tuple[MultiTaskNet, Batch, Pass]:
    """A real network after a real training step's backward, as the probe and GradNorm find it."""
    network = build_network(name, tasks, 32, seed=0).train()
    labels = {task: _label(task) for task in tasks}
    batch = Batch(torch.rand(PICTURES, 3, 32, 32), labels, torch.ones(PICTURES, 1, 32, 32))
    done = forward(network, batch, Execution(), keep=True)
    done.means.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return network, batch, done


def _label(task: str) -> torch.Tensor:
    if TASKS[task].loss == "cross_entropy":
        return torch.ones(PICTURES, 1, 32, 32, dtype=torch.long)
    return torch.rand(PICTURES, TASKS[task].channels, 32, 32)


@pytest.mark.parametrize("tasks", [("normal",), parse_tasks("skt")], ids=["one", "three"])
def test_a_real_training_step_is_the_sum_of_its_parts(tasks: tuple[str, ...]) -> None:
    with flop_counter() as counter:
        kept_pass("pi", tasks)
    assert counter.get_total_flops() == PICTURES * count_flops("pi", tasks, 32).train


@pytest.mark.parametrize("name", ["pi", "xception-small"])
@pytest.mark.parametrize("tasks", [("normal",), parse_tasks("skt")], ids=["one", "three"])
def test_a_real_lookahead_does_what_is_counted_for_it(name: str, tasks: tuple[str, ...]) -> None:
    network, batch, done = kept_pass(name, tasks)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    with flop_counter() as counter:
        lookahead(network, optimizer, batch, done, Execution())
    assert counter.get_total_flops() == PICTURES * count_flops(name, tasks, 32).probe


@pytest.mark.parametrize("name", ["pi", "xception-small"])
def test_a_real_step_of_gradnorm_does_what_is_counted_for_it(name: str) -> None:
    _, _, done = kept_pass(name, parse_tasks("skt"))
    weighting = GradNorm(torch.ones(3), None, alpha=1.5, lr=0.025)
    with flop_counter() as counter:
        weighting.update(done)
    assert counter.get_total_flops() == PICTURES * count_flops(name, parse_tasks("skt"), 32).gradnorm > 0


def test_each_part_is_built_once_however_many_groups_ask_for_it() -> None:
    built: list[str] = []

    def encoder() -> nn.Module:
        built.append("encoder")
        return _Toy()

    def head(channels: int) -> nn.Module:
        built.append(f"head of {channels}")
        return nn.ConvTranspose2d(4, channels, 2, 2)

    table = FlopTable({"toy": NetworkParts(encoder, head, 2)})
    groups = [("normal",), ("normal", "depth_zbuffer"), ("depth_zbuffer",), ("depth_zbuffer", "normal")]
    costs = [table.count("toy", group, 8) for group in groups]
    assert sorted(name for name in built if name != "encoder") == ["head of 1", "head of 3"]
    assert built.count("encoder") == 2  # a network comes with one: once for each of the two new heads
    assert costs[1] == costs[3]
    assert costs == [count_flops("toy", group, 8, TOY) for group in groups]


def test_the_published_costs_at_256_pixels() -> None:
    """2.26 GMAC for the encoder and 0.278 for a head were published: ours are within 2 and 7 %."""
    macs = layer_macs("xception-small", FIVE, 256)
    assert macs["encoder"] == pytest.approx(2.26e9, rel=0.02)
    assert macs["segment_semantic"] == pytest.approx(0.278e9, rel=0.005)
    assert all(macs[task] == pytest.approx(0.278e9, rel=0.07) for task in FIVE)
