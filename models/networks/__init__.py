"""Networks by name, and how one is built so that its parts can be merged and split freely (torch).

A part's initial values depend only on the seed and on which part it is: the encoder of a seed is the same whatever the
tasks, and a task's head the same whatever its company. Merging and splitting models are thus plain dict operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import torch
from torch import nn

from models.networks.multitask import MultiTaskNet
from models.networks.pi import STRIDE as PI_STRIDE
from models.networks.pi import PiEncoder, PiHead
from models.networks.state import export_state, load_state
from models.tasks import TASKS

__all__ = [
    "NETWORKS",
    "MultiTaskNet",
    "NetworkParts",
    "UnknownNetworkError",
    "build_network",
    "export_state",
    "load_state",
]


class UnknownNetworkError(ValueError):
    """A network name that is not registered."""


@dataclass(frozen=True, slots=True)
class NetworkParts:
    """How to make a network's parts: `encoder()`, `head(channels)`; input sides are padded to multiples of `stride`."""

    encoder: Callable[[], nn.Module]
    head: Callable[[int], nn.Module]
    stride: int


#: Networks by name. To try another, pass `networks={**NETWORKS, "mine": NetworkParts(...)}` to `build_network`.
NETWORKS: Mapping[str, NetworkParts] = MappingProxyType({"pi": NetworkParts(PiEncoder, PiHead, PI_STRIDE)})


def build_network(
    name: str, tasks: Sequence[str], size: int, seed: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> MultiTaskNet:
    """Freshly initialised network `name`, one head per task, for pictures of `size` x `size` (at least its stride).

    torch's random state is left as it was. Raises UnknownNetworkError, or ValueError for an unknown task or size.
    """
    if name not in networks:
        raise UnknownNetworkError(f"unknown network {name!r}; known are {', '.join(sorted(networks))}")
    parts = networks[name]
    unknown = [task for task in tasks if task not in TASKS]
    if unknown or not tasks:
        raise ValueError(f"unknown tasks {unknown}" if unknown else "a network needs at least one task")
    if size < parts.stride:
        raise ValueError(f"network {name} needs pictures of at least {parts.stride} pixels, not {size}")
    encoder = _seeded(parts.encoder, seed, "encoder")
    heads = {task: _seeded(partial(parts.head, TASKS[task].channels), seed, task) for task in tasks}
    network = MultiTaskNet(encoder, heads, parts.stride)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    return network


def _seeded(make: Callable[[], nn.Module], seed: int, part: str) -> nn.Module:
    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return make()
