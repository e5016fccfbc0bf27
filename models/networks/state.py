"""A network's state as flat float32 numpy arrays, the form that travels (names `encoder...` and `heads.<task>...`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from models.state import FloatArray, StateError, check_like

#: BatchNorm's batch counters are no weights: with a fixed momentum they change nothing, so they stay at home.
_LOCAL_SUFFIX = "num_batches_tracked"


def export_state(network: nn.Module) -> dict[str, FloatArray]:
    """Parameters and BatchNorm statistics as float32 copies, in the network's order."""
    return {name: np.array(value.numpy(), dtype=np.float32, order="C") for name, value in _travelling(network).items()}


def load_state(network: nn.Module, state: Mapping[str, FloatArray]) -> None:
    """Copy `state` into `network`. Raises StateError, having changed nothing, unless it fits exactly and is finite."""
    faults = check_like(state, export_state(network))
    if faults:
        raise StateError(faults)
    for name, value in _travelling(network).items():
        value.copy_(torch.from_numpy(np.array(state[name])))


def _travelling(network: nn.Module) -> dict[str, Tensor]:
    """Detached views of what travels; writing to them writes to the network."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith(_LOCAL_SUFFIX)}
