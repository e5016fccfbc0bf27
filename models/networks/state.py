"""A network's state as flat float32 numpy arrays, the form that travels (names `encoder...` and `heads.<task>...`)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from models.state import FloatArray, StateError, check_like

_CPU = torch.device("cpu")
#: BatchNorm's batch counters are no weights: with a fixed momentum they change nothing, so they stay at home.
_LOCAL_SUFFIX = "num_batches_tracked"


def export_state(network: nn.Module) -> dict[str, FloatArray]:
    """Parameters and BatchNorm statistics as float32 copies, in the network's order.

    From a device's memory they come as one transfer, for each is a wait.
    """
    here = _travelling(network)
    if _on_host(here):
        return {name: np.array(value.numpy(), dtype=np.float32, order="C") for name, value in here.items()}
    flat = torch.cat([value.reshape(-1).float() for value in here.values()]).cpu()
    parts = torch.split(flat, [value.numel() for value in here.values()])
    return {name: part.numpy().reshape(here[name].shape).copy() for name, part in zip(here, parts, strict=True)}


def load_state(network: nn.Module, state: Mapping[str, FloatArray]) -> None:
    """Copy `state` into `network`, to a device's memory as one transfer.

    Raises StateError, having changed nothing, unless it fits exactly and is finite.
    """
    here = _travelling(network)
    faults = check_like(state, {name: _shaped(value) for name, value in here.items()})
    if faults:
        raise StateError(faults)
    if _on_host(here):
        for name, value in here.items():
            np.copyto(value.numpy(), state[name])
        return
    flat = torch.from_numpy(np.concatenate([state[name].reshape(-1) for name in here]))
    flat = flat.to(next(iter(here.values())).device)
    for part, value in zip(torch.split(flat, [value.numel() for value in here.values()]), here.values(), strict=True):
        value.copy_(part.view(value.shape))


def _shaped(value: Tensor) -> FloatArray:
    """An array of the tensor's shape, to compare with; nothing is copied for it."""
    array: FloatArray = value.numpy() if value.device == _CPU else np.broadcast_to(np.float32(0), value.shape)
    return array


def _on_host(tensors: Mapping[str, Tensor]) -> bool:
    """Whether numpy can see them all; a network is otherwise on one device."""
    return all(value.device == _CPU for value in tensors.values())


def _travelling(network: nn.Module) -> dict[str, Tensor]:
    """Detached views of what travels; writing to them writes to the network."""
    return {name: value for name, value in network.state_dict().items() if not name.endswith(_LOCAL_SUFFIX)}
