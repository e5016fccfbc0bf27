"""Floating-point operations of one picture through a network: counted as torch does the work, and predicted.

The prediction is what MAS rests on: a shared encoder costs `a` and each head `b`, so n tasks cost a + b n at once and
(a + b) n one by one. It sums the formula of a convolution over layers; the count listens to what torch executes for
each part, the encoder and every head, forwards and backwards. Independent are thus the layers' formula against torch's
figures, and "a backward is two forwards" against backwards that were executed. Shared are the network, which kinds of
work count, how often a training step, a lookahead and GradNorm go through each part (`_total`), and that parts add up;
that real steps do just this is for tests to say. A depthwise convolution's backward is counted by our own formula,
since torch's leaves out that it joins no two channels. All is on torch's meta device: arrays with shapes and no
contents.

A multiplication with its addition counts as 2. Only convolutions and matrix products count: BatchNorm, ReLU, pooling,
losses, the optimizer, and FedProx's pull on each weight do not, though they take time too. For the networks built in,
what is predicted is within 3 % of what is counted: a backward gives the picture itself no gradient, so a training step
is 2.92 (pi) to 3.00 forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.networks import NETWORKS, MultiTaskNet, NetworkParts, build_network

#: BatchNorm cannot train on a single value for each channel, which is what one small picture may leave.
_BATCH = 2
_ENCODER = "encoder"
_Layer = nn.Conv2d | nn.ConvTranspose2d | nn.Linear
_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)


@dataclass(frozen=True, slots=True)
class SampleFlops:
    """Operations for one picture: a training step, an evaluation, a lookahead of the affinity probe, and GradNorm.

    The lookahead stands within the training step of its batch and comes on top of it: for n tasks, n - 1 backwards
    through the encoder and n forwards. (In bfloat16 the trainer does n backwards.) GradNorm comes on top of each step
    whose losses it weights: for each task the gradient of the encoder's last weights.
    """

    train: float
    evaluate: float
    probe: float
    gradnorm: float = 0.0


@dataclass(frozen=True, slots=True)
class _Part:
    """Operations of one picture in the encoder or a head; `last`: of the gradient of its last layer's weights alone."""

    forward: float
    backward: float
    last: float


@dataclass(frozen=True, slots=True)
class _Seen:
    """One network at one size: by part what was counted, the multiply-accumulates, and those of the last layer."""

    counted: dict[str, _Part] = field(default_factory=dict)
    macs: dict[str, int] = field(default_factory=dict)
    last_macs: dict[str, int] = field(default_factory=dict)


@dataclass(slots=True)
class FlopTable:
    """Counts and predictions of many task sets; each part of a network is built and looked at once."""

    networks: Mapping[str, NetworkParts] = field(default_factory=lambda: NETWORKS)
    _seen: dict[tuple[str, int], _Seen] = field(default_factory=dict)

    def count(self, network: str, tasks: Sequence[str], size: int) -> SampleFlops:
        """What torch does for a picture of `size` x `size`. Raises as `build_network` does."""
        return _total(self._look(network, tasks, size).counted, tasks)

    def predict(self, network: str, tasks: Sequence[str], size: int) -> SampleFlops:
        """The same from a + b n: the MACs of the encoder (a) and of a head (b, the mean of the tasks' heads).

        A backward is taken for two forwards, so training is three. Layers are those of torch's own classes; whatever
        else a network computes is not predicted. Raises as `build_network` does.
        """
        seen = self._look(network, tasks, size)
        parts = {name: _Part(2 * macs, 4 * macs, 2 * seen.last_macs[name]) for name, macs in seen.macs.items()}
        return _total(parts, tasks)

    def macs(self, network: str, tasks: Sequence[str], size: int) -> dict[str, int]:
        """Multiply-accumulates of one picture's forward in the "encoder" and in the head of each task, by name."""
        seen = self._look(network, tasks, size)
        return {name: seen.macs[name] for name in (_ENCODER, *tasks)}

    def _look(self, network: str, tasks: Sequence[str], size: int) -> _Seen:
        seen = self._seen.setdefault((network, size), _Seen())
        missing = [task for task in tasks if task not in seen.counted]
        if missing or not tasks:
            with torch.device("meta"):
                net = build_network(network, missing, size, seed=0, networks=self.networks).train()
                rgb = torch.zeros(_BATCH, 3, size, size)
            features = _look_at(seen, _ENCODER, net.encoder, partial(_represent, net, rgb), None)
            for task in missing:
                leaf = features.detach().requires_grad_()
                _look_at(seen, task, net.heads[task], partial(net.heads[task], leaf), leaf)
        return seen


def count_flops(
    network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> SampleFlops:
    """`FlopTable.count` of one task set."""
    return FlopTable(networks).count(network, tasks, size)


def predict_flops(
    network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> SampleFlops:
    """`FlopTable.predict` of one task set."""
    return FlopTable(networks).predict(network, tasks, size)


def layer_macs(
    network: str, tasks: Sequence[str], size: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> dict[str, int]:
    """`FlopTable.macs` of one task set."""
    return FlopTable(networks).macs(network, tasks, size)


def flop_counter() -> FlopCounterMode:
    """torch's counter, with the backward of depthwise convolutions put right."""
    return FlopCounterMode(display=False, custom_mapping={torch.ops.aten.convolution_backward: _backward_flops})


def _total(parts: Mapping[str, _Part], tasks: Sequence[str]) -> SampleFlops:
    """How often a picture goes through each part, for n tasks."""
    n, encoder, heads = len(tasks), parts[_ENCODER], [parts[task] for task in tasks]
    forward = encoder.forward + sum(head.forward for head in heads)
    return SampleFlops(
        train=forward + encoder.backward + sum(head.backward for head in heads),
        evaluate=forward,
        probe=n * forward + (n - 1) * encoder.backward,
        gradnorm=n * encoder.last,
    )


def _represent(net: MultiTaskNet, rgb: Tensor) -> Tensor:
    return net.represent(rgb)


def _look_at(seen: _Seen, name: str, module: nn.Module, work: Callable[[], Tensor], leaf: Tensor | None) -> Tensor:
    """Run a part once, forwards and backwards; its output. `leaf`: its input, None for a picture, whose gradient nobody
    wants.
    """
    ran: list[tuple[_Layer, int]] = []
    layers = [layer for layer in module.modules() if isinstance(layer, _LAYERS)]
    hooks = [layer.register_forward_hook(partial(_note, ran)) for layer in layers]
    with flop_counter() as forward:
        output = work()
    for hook in hooks:
        hook.remove()
    wanted = [*module.parameters(), *([] if leaf is None else [leaf])]
    backward = _gradients(output, wanted)
    last = _gradients(output, [ran[-1][0].weight]) if ran else 0
    seen.counted[name] = _Part(forward.get_total_flops() / _BATCH, backward / _BATCH, last / _BATCH)
    seen.macs[name] = sum(macs for _, macs in ran)
    seen.last_macs[name] = ran[-1][1] if ran else 0
    return output


def _gradients(output: Tensor, wanted: Sequence[Tensor]) -> int:
    with flop_counter() as counter:
        torch.autograd.grad(output, wanted, torch.empty_like(output), retain_graph=True, allow_unused=True)
    return int(counter.get_total_flops())


def _note(ran: list[tuple[_Layer, int]], layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
    """Every weight works once at each position: of the output, or of a transposed convolution's input."""
    assert isinstance(layer, _LAYERS)
    positions = inputs[0].shape[2:] if isinstance(layer, nn.ConvTranspose2d) else output.shape[2:]
    ran.append((layer, prod(positions) * layer.weight.numel()))


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
