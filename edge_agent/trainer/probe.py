"""The affinity probe: what one step for one task does to every task's loss (step 2 of MAS; the "lookahead").

For each source task j the shared encoder takes, on this batch, the step that the optimizer would take next if L_j were
the only loss; the heads stay. Then, on the same batch, for every target task i,

    affinity[j, i] = 1 - L_i(encoder after j's step, head i) / L_i(encoder now, head i).

"The step that the optimizer would take" is meant literally: momentum buffers, weight decay, FedProx's pull and the
network's gradient scaling take part. (The research code released for MAS steps by the bare gradient: its momentum is
never applied.)

The probe stands between a training step's backward and its update, and uses what these have computed: L_i(now) are the
step's own losses, what each head sends back to the encoder is known, and the encoder's gradients of all tasks add up to
the step's, so that one of n need not be computed. It costs n - 1 backwards through the encoder and n forwards.

It leaves no trace: it runs the network on substituted encoder parameters and on copies of BatchNorm's statistics, and
differentiates without touching `.grad`, so there is nothing to put back.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.func import functional_call

from edge_agent.trainer.execution import Execution
from edge_agent.trainer.objective import Pull
from edge_agent.trainer.passes import Pass
from models.losses import Batch, batch_losses
from models.networks import MultiTaskNet

_ENCODER = "encoder."
_NOT_KEPT = "the pass has no gradients of its views: make it with keep=True and run its backward"
_Gradients = list[Tensor | None]


def lookahead(
    network: MultiTaskNet,
    optimizer: torch.optim.SGD,
    batch: Batch,
    done: Pass,
    execution: Execution,
    *,
    weights: Tensor | None = None,
    pull: Pull | None = None,
) -> Tensor:
    """Affinities of one batch, float64 [source task, target task], the diagonal included, tasks as in the network.

    `done` is the batch's pass with views kept; its graph must still be there, and `.grad` hold the gradient of the
    sum of the losses times `weights` [task] (None: ones), and nothing else. Not finite where a loss is zero (a
    ratio to it means nothing) or a figure is not finite: such a batch does not count.
    """
    encoder = {name: value for name, value in network.named_parameters() if name.startswith(_ENCODER)}
    after: dict[int, Tensor] = {}
    if done.random is None:
        raise ValueError(_NOT_KEPT)
    random = done.random
    for source, gradients in _gradients(list(encoder.values()), done, execution):
        if weights is not None:
            gradients = [None if each is None else each / weights[source] for each in gradients]
        # The dropout of the step itself, so that affinities compare encoders and not masks.
        with torch.no_grad(), execution.drawing_again(random):
            after[source] = _losses_with(network, _step(encoder, gradients, optimizer, pull), batch, execution)
    rows = torch.stack([after[source] for source in range(len(done.views))])
    return 1.0 - rows / done.means.detach().double()


def _gradients(encoder: Sequence[Tensor], done: Pass, execution: Execution) -> Iterator[tuple[int, _Gradients]]:
    """Each task's gradient of the encoder, times the task's weight, in any order of tasks.

    One is what the others leave of the whole: the one that sends most, as rounding then weighs least. In bfloat16
    even that would be too coarse, so there all are computed.
    """
    flows = [view.grad if view.retains_grad else None for view in done.views.values()]
    if any(flow is None for flow in flows):
        raise ValueError(_NOT_KEPT)
    left: _Gradients = [None if value.grad is None else value.grad.clone() for value in encoder]
    last = _largest(flows) if execution.autocast is None or len(flows) == 1 else None
    for source, flow in enumerate(flows):
        if source == last:
            continue
        part: _Gradients = list(torch.autograd.grad(done.features, encoder, flow, retain_graph=True, allow_unused=True))
        yield source, part
        for rest, value in zip(left, part, strict=True):
            if rest is not None and value is not None:
                rest -= value
    if last is not None:
        yield last, left


def _largest(flows: Sequence[Tensor | None]) -> int:
    norms = torch.stack([flow.norm() for flow in flows if flow is not None])
    return int(norms.argmax()) if len(flows) > 1 else 0


def _losses_with(network: MultiTaskNet, encoder: Mapping[str, Tensor], batch: Batch, execution: Execution) -> Tensor:
    """Losses [task] with `encoder` in place of the encoder's parameters; BatchNorm updates copies of its statistics."""
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    with execution.forward():
        outputs: dict[str, Tensor] = functional_call(network, {**encoder, **buffers}, (batch.rgb,))
    losses = batch_losses(network.tasks, outputs, batch)
    return torch.stack([loss.mean() for loss in losses.values()]).double()


def _step(
    encoder: Mapping[str, Tensor], gradients: _Gradients, optimizer: torch.optim.SGD, pull: Pull | None
) -> dict[str, Tensor]:
    """The encoder's parameters after the step that `optimizer` would take with these gradients."""
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    after: dict[str, Tensor] = {}
    for (name, parameter), gradient in zip(encoder.items(), gradients, strict=True):
        group = groups.get(parameter)
        if group is None or gradient is None:
            after[name] = parameter.detach()
            continue
        change = gradient if pull is None else gradient + pull.gradient(parameter)
        change = change + group["weight_decay"] * parameter
        if group["momentum"]:
            buffer = optimizer.state[parameter].get("momentum_buffer") if parameter in optimizer.state else None
            velocity = change if buffer is None else group["momentum"] * buffer + (1 - group["dampening"]) * change
            change = change + group["momentum"] * velocity if group["nesterov"] else velocity
        after[name] = parameter - group["lr"] * change
    return after
