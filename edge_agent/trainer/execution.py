"""Where and in which precision a trainer computes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from models.losses import Batch

_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class RandomState:
    """torch's random states at one moment; `device` is None where the host does the work."""

    host: Tensor
    device: Tensor | None


@dataclass(frozen=True, slots=True)
class Execution:
    """`device` holds the network and takes the batches. `autocast` (bfloat16, or None for plain float32) is the
    precision of the networks' forwards in training, evaluation and probes; weights, losses and updates stay float32.

    Tested on the CPU in both precisions; no GPU has run it, `settle` and the device's random state included.
    """

    device: torch.device = _CPU
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.autocast not in (None, torch.bfloat16):
            raise ValueError(
                f"autocast to {self.autocast} needs loss scaling, which is not here; choose bfloat16 or None"
            )

    @property
    def waits_are_free(self) -> bool:
        """Whether reading a value costs nothing, because the host computes it itself."""
        return self.device.type == "cpu"

    def forward(self) -> torch.autocast:
        """The context of a network's forward."""
        return torch.autocast(
            self.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None
        )

    @contextmanager
    def seeded(self, seed: int) -> Iterator[None]:
        """What torch draws by itself in the body (dropout) depends on `seed` alone; outside, nothing is changed."""
        with self.unmoved():
            torch.default_generator.manual_seed(seed)
            if self.device.type == "cuda":
                with torch.cuda.device(self.device):
                    torch.cuda.manual_seed(seed)
            yield

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """torch's random state after the body is that from before it, on the host and on the device."""
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            yield

    def random_state(self) -> RandomState:
        """What torch will draw by itself from here on, on the host and on the device."""
        on_device = torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None
        return RandomState(torch.get_rng_state(), on_device)

    @contextmanager
    def drawing_again(self, state: RandomState) -> Iterator[None]:
        """The body draws what was drawn after `state` was taken; outside, nothing is changed."""
        with self.unmoved():
            torch.set_rng_state(state.host)
            if state.device is not None:
                torch.cuda.set_rng_state(state.device, self.device)
            yield

    def moved(self, batch: Batch) -> Batch:
        """`batch` on the device; what lies there already is not copied."""
        return Batch(
            rgb=batch.rgb.to(self.device, non_blocking=True),
            targets={name: target.to(self.device, non_blocking=True) for name, target in batch.targets.items()},
            mask=None if batch.mask is None else batch.mask.to(self.device, non_blocking=True),
        )

    def settle(self) -> None:
        """Wait for what the device has been told to do, so that the clock says what it took."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
