"""Two small networks at the bench: one whose numbers are worked by hand, one with all that a probe could disturb.

The linear model: one number w, shared, times a picture of ones; head i is a number h_i, its label y_i, and its loss
|h_i w - y_i|. w = 2, h = (1, 3), y = (5, 2), so the losses are 3 (sign -1) and 4 (sign +1), dL/dw is (-1, 3) over
sqrt(2) for two tasks, and dL/dh = (-2, 2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from edge_agent.trainer.execution import Execution
from edge_agent.trainer.passes import Pass, forward
from edge_agent.trainer.perform import Workbench
from edge_agent.trainer.probe import lookahead
from edge_agent.trainer.protocol import TrainDone, WorkPhase
from edge_agent.trainer.spans import SpanRecorder
from models.losses import Batch
from models.networks import MultiTaskNet, NetworkParts, build_network, export_state
from models.state import State
from models.wire.chunks import make_ref
from models.wire.job import TrainSettings
from models.wire.messages import OrderKey, TrainOrder

CPU = Execution()
TWO = ("keypoints2d", "edge_texture")
THREE = ("normal", "keypoints2d", "edge_texture")
ROOT2 = math.sqrt(2)


class Times(nn.Module):
    """One number times the first channel."""

    def __init__(self) -> None:
        super().__init__()
        self.number = nn.Parameter(torch.zeros(()))

    def forward(self, maps: Tensor) -> Tensor:
        return self.number * maps[:, :1]


def convolutions(dropout: float) -> nn.Module:
    """What a careless probe would move: statistics of a BatchNorm, and torch's random state where there is dropout."""
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh(), nn.Dropout(dropout))


PARTS: Mapping[str, NetworkParts] = {
    "linear": NetworkParts(Times, lambda channels: Times(), 1),
    "small": NetworkParts(lambda: convolutions(0.1), lambda channels: nn.Conv2d(4, channels, 1), 1),
    "calm": NetworkParts(lambda: convolutions(0.0), lambda channels: nn.Conv2d(4, channels, 1), 1),
}
LINEAR: State = {
    "encoder.number": np.array(2.0, np.float32),
    "heads.keypoints2d.number": np.array(1.0, np.float32),
    "heads.edge_texture.number": np.array(3.0, np.float32),
}


@dataclass
class Fixed:
    """The same batch, however often and in whatever order its samples are asked for."""

    batch: Batch
    skipped: tuple[str, ...] = ()
    skipped_total: int = 0

    def __len__(self) -> int:
        return len(self.batch)

    def load(self, indices: Sequence[int]) -> Batch:
        return self.batch

    @property
    def usable(self) -> int:
        return len(self.batch)

    def check_faults(self) -> None:
        """There are none."""


def ones() -> Batch:
    labels = {"keypoints2d": 5.0, "edge_texture": 2.0}
    return Batch(torch.ones(2, 3, 1, 1), {task: torch.full((2, 1, 1, 1), y) for task, y in labels.items()})


def pictures(seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    targets = {task: torch.randn(4, 3 if task == "normal" else 1, 8, 8, generator=random) for task in THREE}
    return Batch(torch.rand(4, 3, 8, 8, generator=random), targets, torch.ones(4, 1, 8, 8))


def order(network: str, tasks: Sequence[str], probe_every: int = 0, **changes: object) -> TrainOrder:
    plain: dict[str, object] = {"batch_size": 4, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "flips": False}
    weights: tuple[float, ...] = changes.pop("loss_weights", ())  # type: ignore[assignment]
    references: tuple[float, ...] = changes.pop("reference_losses", ())  # type: ignore[assignment]
    return TrainOrder(
        OrderKey("job", "merged", 0, "agent", 0, "train"), tuple(tasks), network, 8, make_ref(b"base"), 5,
        TrainSettings(**{**plain, **changes}), probe_every, "fp32", 0.0, 60.0, weights, references,  # type: ignore[arg-type]
    )  # fmt: skip


def no_step(phase: WorkPhase, done: int, total: int) -> None:
    """Nobody watches."""


def trained(work: TrainOrder) -> tuple[TrainDone, State]:
    """What the bench answers: on the linear model at w = 2 and h = (1, 3), or on another network as it is built."""
    linear = work.network == "linear"
    base = LINEAR if linear else export_state(build_network(work.network, work.tasks, 8, 1, PARTS))
    return Workbench(CPU, networks=PARTS).train(
        work, base, Fixed(ones() if linear else pictures()), SpanRecorder(), no_step
    )


def moved(work: TrainOrder) -> dict[str, float]:
    """How far each number of the linear model goes."""
    return {name: float(change) for name, change in trained(work)[1].items()}


Probe = Callable[[MultiTaskNet, torch.optim.SGD, Batch], np.ndarray]


def backward(network: MultiTaskNet, batch: Batch) -> Pass:
    network.zero_grad()
    done = forward(network, batch, CPU, keep=True)
    done.means.sum().backward(retain_graph=True)  # type: ignore[no-untyped-call]
    return done


def our_probe(network: MultiTaskNet, optimizer: torch.optim.SGD, batch: Batch) -> np.ndarray:
    return lookahead(network, optimizer, batch, backward(network, batch), CPU).numpy()


def on_its_way(network_name: str) -> tuple[MultiTaskNet, torch.optim.SGD]:
    """A network after two steps, so that the optimizer has a momentum."""
    network = build_network(network_name, THREE, 8, 0, PARTS).train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for seed in (7, 8):
        backward(network, pictures(seed))
        optimizer.step()
    return network, optimizer
