"""One training pass: the network's forward on a batch, the losses, and what flows back through each head."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from edge_agent.trainer.execution import Execution, RandomState
from models.losses import Batch, SampleLosses, batch_losses
from models.networks import MultiTaskNet


@dataclass(frozen=True, slots=True)
class Pass:
    """`features`: Z; `views`: each head's own view of Z, whose `grad` is dL/dZ by that head alone after a backward of
    the objective if `keep` was asked for; `losses` and `means` [task]: those of the tasks, in the network's order;
    `random`: what the forward began with, if kept, so that dropout can be drawn again.
    """

    features: Tensor
    views: dict[str, Tensor]
    losses: dict[str, SampleLosses]
    means: Tensor
    random: RandomState | None = None


def forward(network: MultiTaskNet, batch: Batch, execution: Execution, *, keep: bool = False) -> Pass:
    """The pass of a training step, up to its backward. Losses are float32 whatever the forward's precision.

    Heads read views in every step, kept or not, so that gradients add up in one order and bits do not depend on `keep`.
    """
    random = execution.random_state() if keep else None
    with execution.forward():
        features = network.represent(batch.rgb)
        views = {name: features.view_as(features) for name in network.tasks}
        if keep:
            for view in views.values():
                view.retain_grad()
        outputs = network.read(views, int(batch.rgb.shape[-2]), int(batch.rgb.shape[-1]))
    losses = batch_losses(network.tasks, outputs, batch)
    return Pass(features, views, losses, torch.stack([loss.mean() for loss in losses.values()]), random)
