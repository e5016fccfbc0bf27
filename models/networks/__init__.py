"""Networks by name, and how one is built so that its parts can be merged and split freely (torch).

Other packages add networks through entry points of the group `mas_edge.networks`: the entry point's name is the
network's, and it loads to a `NetworkParts`.

A part's initial values depend only on the seed and on which part it is: the encoder of a seed is the same whatever the
tasks, and a task's head the same whatever its company. Merging and splitting models are thus plain dict operations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from models.networks.multitask import MultiTaskNet
from models.networks.pi import FEATURES as PI_FEATURES
from models.networks.pi import STRIDE as PI_STRIDE
from models.networks.pi import PiEncoder, PiHead
from models.networks.state import export_state, load_state
from models.networks.vector import VectorHead
from models.networks.xception import FEATURES as XCEPTION_FEATURES
from models.networks.xception import HALF, QUAD, SMALL, Widths, XceptionEncoder, XceptionHead
from models.networks.xception import STRIDE as XCEPTION_STRIDE
from models.plugins import Registry
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
    """How to make a network's parts; input sides are padded to multiples of `stride`.

    `encoder()`; for a task of so many channels `head(channels)`, which gives maps, or `vector_head(channels)`, which
    gives vectors (None: the network has no such head, and refuses tasks of the whole picture).
    """

    encoder: Callable[[], nn.Module]
    head: Callable[[int], nn.Module]
    stride: int
    vector_head: Callable[[int], nn.Module] | None = None


def _xception(widths: Widths) -> NetworkParts:
    vectors = partial(VectorHead, XCEPTION_FEATURES)
    return NetworkParts(partial(XceptionEncoder, widths), XceptionHead, XCEPTION_STRIDE, vectors)


def _plugin(name: str, loaded: object) -> dict[str, NetworkParts]:
    if not isinstance(loaded, NetworkParts):
        raise TypeError(f"it loads to {type(loaded).__name__}; a network is a models.networks.NetworkParts")
    return {name: loaded}


#: Networks by name: those built in, and those of installed packages.
NETWORKS: Registry[NetworkParts] = Registry(
    "mas_edge.networks",
    {
        "pi": NetworkParts(PiEncoder, PiHead, PI_STRIDE, partial(VectorHead, PI_FEATURES)),
        "xception-small": _xception(SMALL),
        "xception-half": _xception(HALF),
        "xception-quad": _xception(QUAD),
    },
    _plugin,
)


def build_network(
    name: str, tasks: Sequence[str], size: int, seed: int, networks: Mapping[str, NetworkParts] = NETWORKS
) -> MultiTaskNet:
    """Freshly initialised network `name`, one head per task, for pictures of `size` x `size` (at least its stride).

    torch's random state is left as it was. Raises UnknownNetworkError, or ValueError for a task or size it cannot have.
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
    makers = {task: _head(name, parts, task) for task in tasks}
    heads = {task: _seeded(make, seed, task) for task, make in makers.items()}
    network = MultiTaskNet(encoder, heads, parts.stride)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's annotations
    return network


def _head(name: str, parts: NetworkParts, task: str) -> Callable[[], nn.Module]:
    spec = TASKS[task]
    if not spec.is_vector:
        return partial(parts.head, spec.channels)
    if parts.vector_head is None:
        raise ValueError(f"network {name} has no head for {task}, which is of the whole picture; give it a vector_head")
    return partial(parts.vector_head, spec.channels)


def _seeded(make: Callable[[], nn.Module], seed: int, part: str) -> nn.Module:
    digest = hashlib.sha256(f"{seed}/{part}".encode()).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        return make()
