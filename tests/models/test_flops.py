"""Operations of a network: worked by hand, counted by torch, and foretold."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from models.networks import NETWORKS, NetworkParts
from models.networks.flops import count_flops, layer_macs, predict_flops
from models.tasks import parse_tasks

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


def test_what_is_foretold_is_a_plus_b_n() -> None:
    one, four = (predict_flops("xception-small", tasks, 64) for tasks in (("normal",), parse_tasks("ndkt")))
    encoder = layer_macs("xception-small", ("normal",), 64)["encoder"]
    heads = [layer_macs("xception-small", (task,), 64)[task] for task in parse_tasks("ndkt")]
    assert four.evaluate == pytest.approx(2 * (encoder + sum(heads)))
    assert (one.train, four.train) == (pytest.approx(3 * one.evaluate), pytest.approx(3 * four.evaluate))
    assert one.probe == pytest.approx(one.evaluate)
    assert four.probe == pytest.approx(4 * four.evaluate + 3 * 2 * 2 * encoder)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("tasks", [("normal",), ("class_scene", "normal"), FIVE], ids=["one", "mixed", "five"])
def test_what_is_foretold_is_what_torch_does_within_three_percent(name: str, tasks: tuple[str, ...]) -> None:
    counted, foretold = count_flops(name, tasks, 64), predict_flops(name, tasks, 64)
    assert foretold.evaluate == counted.evaluate
    assert foretold.train == pytest.approx(counted.train, rel=0.03)
    assert foretold.probe == pytest.approx(counted.probe, rel=0.03)


def test_the_published_costs_at_256_pixels() -> None:
    """2.26 GMAC for the encoder and 0.278 for a head were published: ours are within 2 and 7 %."""
    macs = layer_macs("xception-small", FIVE, 256)
    assert macs["encoder"] == pytest.approx(2.26e9, rel=0.02)
    assert macs["segment_semantic"] == pytest.approx(0.278e9, rel=0.005)
    assert all(macs[task] == pytest.approx(0.278e9, rel=0.07) for task in FIVE)
