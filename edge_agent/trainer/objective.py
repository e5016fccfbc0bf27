"""What local training minimises: the tasks' losses as they are summed or weighted, and FedProx's pull.

GradNorm (Chen et al., ICML 2018, equations 1 and 2, algorithm 1) trains a weight for each task. With W the weights of
the last shared layer, G_i = |w_i dL_i/dW|, and r_i = (L_i / L_i(0)) / mean_j (L_j / L_j(0)), the weights descend

    sum_i |G_i - mean(G) * r_i ** alpha|,    where the second term is held constant,

and are then scaled to sum to the number of tasks. FedProx (Li et al., MLSys 2020, equation 2) adds
mu/2 * |w - w_base|^2 to a device's objective, whose gradient mu * (w - w_base) is added here as it is.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edge_agent.trainer.passes import Pass
from models.wire.messages import TrainOrder

#: A weight that GradNorm's step would take to zero or below stays here: the gradient of a task that is left out
#: entirely could never bring it back.
LEAST_WEIGHT = 1e-3


@dataclass(slots=True)
class GradNorm:
    """GradNorm's state within an order: `weights` [task] and `reference` [task], the losses L_i(0).

    Gradients are those of the losses themselves: the encoder's scaling by 1/sqrt(n) is taken out of them.
    """

    weights: Tensor
    reference: Tensor | None
    alpha: float
    lr: float
    shared: Tensor | None = None

    def total(self, means: Tensor) -> Tensor:
        """The weighted sum that a step minimises."""
        return (self.weights * means).sum()

    def update(self, done: Pass) -> None:
        """One step of the weights from a pass whose backward is done and whose graph is still there.

        Changes nothing when a figure in it is not finite (a reference loss of zero, a batch that diverges).
        """
        if self.reference is None:
            self.reference = done.means.detach()
        shared = self.shared = last_shared_weights(done.features) if self.shared is None else self.shared
        unscale = math.sqrt(len(done.views))
        norms = torch.stack([_norm(done, view, shared) for view in done.views.values()]) * unscale / self.weights
        updated = gradnorm_step(self.weights, norms, done.means.detach() / self.reference, self.alpha, self.lr)
        self.weights = torch.where(updated.isfinite().all(), updated, self.weights)


def gradnorm_step(weights: Tensor, norms: Tensor, ratios: Tensor, alpha: float, lr: float) -> Tensor:
    """Weights [task] after one step. `norms`: |dL_i/dW| without the weights; `ratios`: L_i / L_i(0)."""
    weighted = weights * norms
    target = weighted.mean() * (ratios / ratios.mean()) ** alpha
    moved = (weights - lr * (weighted - target).sign() * norms).clamp_min(LEAST_WEIGHT)
    return moved * (len(moved) / moved.sum())


def last_shared_weights(features: Tensor) -> Tensor:
    """W of GradNorm for any encoder: of its weights of two dimensions or more, those fewest operations before Z.

    Found in the graph that made Z, so it does not depend on the order in which layers were registered. An encoder that
    has no such weights gives those of any shape. Raises ValueError for one without trainable weights.
    """
    waiting, seen, anything = deque([features.grad_fn]), {features.grad_fn}, None
    while waiting:
        node = waiting.popleft()
        weights = getattr(node, "variable", None)
        if isinstance(weights, Tensor):
            if weights.ndim >= 2:
                return weights
            anything = weights if anything is None else anything
        for before, _ in node.next_functions if node is not None else ():
            if before is not None and before not in seen:
                seen.add(before)
                waiting.append(before)
    if anything is None:
        raise ValueError("GradNorm needs an encoder with trainable weights; order the plain sum of losses")
    return anything


def gradnorm_of(order: TrainOrder, device: torch.device) -> GradNorm | None:
    """GradNorm as the order asks for it; None where it asks for the plain sum. Raises ValueError for unfit weights."""
    if order.settings.loss_weighting != "gradnorm":
        return None
    for name, values in (("loss_weights", order.loss_weights), ("reference_losses", order.reference_losses)):
        if values and (len(values) != len(order.tasks) or not all(0 < value < math.inf for value in values)):
            raise ValueError(f"{name} {values} do not fit {len(order.tasks)} tasks: one positive number for each")
    weights = _row(order.loss_weights or (1.0,) * len(order.tasks), device)
    reference = _row(order.reference_losses, device) if order.reference_losses else None
    return GradNorm(weights, reference, order.settings.gradnorm_alpha, order.settings.gradnorm_lr)


@dataclass(frozen=True, slots=True)
class Pull:
    """FedProx's pull of strength `mu` towards the weights that `anchors` hold."""

    mu: float
    anchors: dict[Tensor, Tensor]

    @staticmethod
    def to_here(network: nn.Module, mu: float) -> Pull | None:
        """A pull to where the network is now; None when mu is 0."""
        if not mu:
            return None
        return Pull(
            mu, {weights: weights.detach().clone() for weights in network.parameters() if weights.requires_grad}
        )

    def gradient(self, weights: Tensor) -> Tensor:
        """mu * (w - w_base)."""
        return self.mu * (weights.detach() - self.anchors[weights])

    def add(self) -> None:
        """Add the gradient to `grad` of all weights that have one."""
        for weights in self.anchors:
            if weights.grad is not None:
                weights.grad += self.gradient(weights)


def _norm(done: Pass, view: Tensor, shared: Tensor) -> Tensor:
    """Norm of what this view's head, with its weight, sends to the last shared layer (scaled as the encoder's is)."""
    assert view.grad is not None
    (gradient,) = torch.autograd.grad(done.features, shared, view.grad, retain_graph=True)
    norm: Tensor = torch.linalg.vector_norm(gradient.float())
    return norm


def _row(values: Sequence[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
