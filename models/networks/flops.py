"""Floating-point operations of one picture through a network: counted as torch does the work, and foretold.

Foretold is what MAS rests on: a shared encoder costs `a` and each head `b`, so n tasks cost a + b n at once and
(a + b) n one by one. The two ways share nothing but the network: one sums the formula of a convolution over layers, the
other listens to what torch executes. Both run on torch's meta device, where arrays have shapes and no contents.

A multiplication with its addition counts as 2. Only convolutions and matrix products count: BatchNorm, ReLU, pooling,
losses and the optimizer do not, though they take time too. For the networks built in, what is foretold is within 3 %
of what is counted: a backward gives the picture itself no gradient, so a training step is 2.92 (pi) to 3.00 forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks import NETWORKS, MultiTaskNet, NetworkParts, build_network

#: BatchNorm cannot train on a single value for each channel, which is what one small picture may leave.
_BATCH = 2


@dataclass(frozen=True, slots=True)
class SampleFlops:
    """Operations for one picture: a training step, an evaluation, and a lookahead of the affinity probe.

    The lookahead stands within the training step of its batch and comes on top of it: for n tasks, n - 1 backwards
    through the encoder and n forwards. (In bfloat16 the trainer does n backwards.)
    """

    train: float
    evaluate: float
    probe: float


def count_flops(
    network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> SampleFlops:
    """Count what torch does for a picture of `size` x `size`, per picture. Raises as `build_network` does."""
    net = _weightless(network, tasks, size, networks).train()
    rgb = torch.zeros(_BATCH, 3, size, size, device="meta")
    encoder = list(net.encoder.parameters())

    def train() -> None:
        torch.stack([value.sum() for value in net(rgb).values()]).sum().backward()  # type: ignore[no-untyped-call]

    def evaluate() -> None:
        with torch.no_grad():
            net(rgb)

    def to_encoder() -> None:
        torch.autograd.grad(features, encoder, torch.empty_like(features), allow_unused=True)

    features = net.represent(rgb)
    trained, forward, backward = (_counted(work) / _BATCH for work in (train, evaluate, to_encoder))
    n = len(tasks)
    return SampleFlops(train=trained, evaluate=forward, probe=n * forward + (n - 1) * backward)


def predict_flops(
    network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> SampleFlops:
    """Foretell the same from a + b n: the MACs of the encoder (a) and of a head (b, the mean of the tasks' heads).

    A backward is taken for two forwards, so training is three. Layers are those of torch's own classes; whatever else a
    network computes is not foreseen. Raises as `build_network` does.
    """
    macs = layer_macs(network, tasks, size, networks)
    n = len(tasks)
    a = macs["encoder"]
    b = sum(macs[task] for task in tasks) / n
    forward = a + b * n
    probe = n * forward + (n - 1) * 2 * a
    return SampleFlops(train=2 * 3 * forward, evaluate=2 * forward, probe=2 * probe)


def layer_macs(
    network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> dict[str, int]:
    """Multiply-accumulates of one picture's forward in the "encoder" and in the head of each task, by name."""
    net = _weightless(network, tasks, size, networks).eval()
    macs = {"encoder": 0, **dict.fromkeys(tasks, 0)}
    for part, module in (("encoder", net.encoder), *net.heads.items()):
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
                layer.register_forward_hook(partial(_add_macs, macs, part))
    with torch.no_grad():
        net(torch.zeros(1, 3, size, size, device="meta"))
    return macs


def _weightless(network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts]) -> MultiTaskNet:
    return build_network(network, tasks, size, seed=0, networks=networks).to("meta")


def _counted(work: Callable[[], None]) -> int:
    # torch's own formula for a weight's gradient leaves out that a depthwise convolution joins no two channels.
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops})
    with counter:
        work()
    return counter.get_total_flops()


def _add_macs(macs: dict[str, int], part: str, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Every weight works once at each position: of the output, or of a transposed convolution's input."""
    assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
    positions = inputs[0].shape[2:] if isinstance(layer, nn.ConvTranspose2d) else output.shape[2:]
    macs[part] += prod(positions) * layer.weight.numel()


def _backward_flops(output_gradient: Any, inputs: Any, weight: Any, *rest: Any, **_: Any) -> int:
    """Operations of a convolution's backward: as many as its forward for each of the two gradients that are wanted.

    The arguments are those of `aten.convolution_backward`: tensors, or their shapes, as torch's release likes.
    """
    transposed, wanted = rest[4], rest[7]
    gradient_shape, input_shape, weight_shape = (
        tuple(each.shape) if isinstance(each, Tensor) else tuple(each) for each in (output_gradient, inputs, weight)
    )
    positions = input_shape[2:] if transposed else gradient_shape[2:]
    return 2 * input_shape[0] * prod(positions) * prod(weight_shape) * sum(map(bool, wanted[:2]))
