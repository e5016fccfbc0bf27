"""The affinity probe: what one step for one task does to every task's loss (step 2 of MAS; the "lookahead").

For each source task j the shared encoder takes, on this batch, the step that the optimizer would take next if L_j were
the only loss; the heads stay. Then, on the same batch, for every target task i,

    affinity[j, i] = 1 - L_i(encoder after j's step, head i) / L_i(encoder now, head i).

"The step that the optimizer would take" is meant literally: momentum buffers, weight decay and the network's gradient
scaling take part. (The research code released for MAS steps by the bare gradient: its momentum is never applied.)

The probe leaves no trace. It runs the network on substituted encoder parameters and on copies of BatchNorm's
statistics, and differentiates without touching `.grad`, so there is nothing to put back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.func import functional_call

from models.losses import Batch, batch_losses
from models.networks import MultiTaskNet
from models.wire.messages import AffinitySums

_ENCODER = "encoder."
AffinityArray = npt.NDArray[np.float64]


def lookahead(
    network: MultiTaskNet, optimizer: torch.optim.SGD, batch: Batch, tasks: Sequence[str]
) -> AffinityArray | None:
    """Affinities [source task, target task] of one batch, the diagonal included; None when the batch does not count.

    A batch does not count when a loss is zero (a ratio to it means nothing) or anything is not finite. `network`
    must be in training mode: losses are those of training, with the batch's own statistics.
    """
    with torch.random.fork_rng(devices=[]):
        encoder = {name: value for name, value in network.named_parameters() if name.startswith(_ENCODER)}
        outputs = _forward(network, {}, batch)
        losses = {name: loss.mean() for name, loss in batch_losses(tasks, outputs, batch).items()}
        now = _values(losses)
        if not np.isfinite(now).all() or (now == 0).any():
            return None
        steps = [_step(encoder, losses[source], optimizer) for source in tasks]
        del outputs, losses
        with torch.no_grad():
            after = np.stack([_losses_with(network, encoder_after, batch, tasks) for encoder_after in steps])
    affinity = 1.0 - after / now[np.newaxis, :]
    return affinity if np.isfinite(affinity).all() else None


@dataclass(slots=True)
class AffinityMeter:
    """Sums of the lookaheads of a training run: every `every`-th batch, counted over the whole job (0: never).

    A device's round may be shorter than `every` batches. Counting on from `first_batch`, the batches of earlier rounds,
    keeps the rate true and lets probes fall on every position within a round.
    """

    tasks: Sequence[str]
    every: int
    first_batch: int = 0
    batches: int = 0
    sums: AffinityArray | None = None

    def due(self, batch: int) -> bool:
        """Whether the run's `batch`-th batch (from 0) is to be probed."""
        return self.every > 0 and (self.first_batch + batch) % self.every == 0

    def add(self, affinity: AffinityArray | None) -> None:
        """Add one lookahead; None is counted out."""
        if affinity is not None:
            self.sums = affinity if self.sums is None else self.sums + affinity
            self.batches += 1

    def result(self) -> AffinitySums | None:
        """Sums [source, target] and the number of batches in them; None when no batch counts."""
        if self.sums is None:
            return None
        return AffinitySums(self.batches, tuple(tuple(float(value) for value in row) for row in self.sums))


def _forward(network: MultiTaskNet, encoder: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    """Outputs with `encoder` in place of the encoder's parameters; BatchNorm updates copies of its statistics."""
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    outputs: dict[str, Tensor] = functional_call(network, {**encoder, **buffers}, (batch.rgb,))
    return outputs


def _losses_with(
    network: MultiTaskNet, encoder: dict[str, Tensor], batch: Batch, tasks: Sequence[str]
) -> AffinityArray:
    losses = batch_losses(tasks, _forward(network, encoder, batch), batch)
    return _values({name: loss.mean() for name, loss in losses.items()})


def _values(losses: dict[str, Tensor]) -> AffinityArray:
    return np.array([float(loss.detach().double()) for loss in losses.values()])


def _step(encoder: Mapping[str, Tensor], loss: Tensor, optimizer: torch.optim.SGD) -> dict[str, Tensor]:
    """The encoder's parameters after the step that `optimizer` would take if `loss` were the only one."""
    gradients = torch.autograd.grad(loss, list(encoder.values()), retain_graph=True, allow_unused=True)
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    after: dict[str, Tensor] = {}
    with torch.no_grad():
        for (name, parameter), gradient in zip(encoder.items(), gradients, strict=True):
            group = groups.get(parameter)
            if group is None or gradient is None:
                after[name] = parameter.detach()
                continue
            change = gradient + group["weight_decay"] * parameter
            if group["momentum"]:
                buffer = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
                velocity = change if buffer is None else group["momentum"] * buffer + (1 - group["dampening"]) * change
                change = change + group["momentum"] * velocity if group["nesterov"] else velocity
            after[name] = parameter - group["lr"] * change
    return after
