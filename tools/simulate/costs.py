"""Floating-point operations of the works really done: pictures counted, times what one picture takes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from models.networks.flops import count_flops
from models.wire.messages import EvaluateOrder, TrainOrder
from tools.simulate.worker import Outcome

_Kind = tuple[str, tuple[str, ...], int]


@dataclass(slots=True)
class FlopMeter:
    """Counts pictures by network, tasks and size; a multiply-accumulate is two operations."""

    _trained: Counter[_Kind] = field(default_factory=Counter)
    _probed: Counter[_Kind] = field(default_factory=Counter)
    _evaluated: Counter[_Kind] = field(default_factory=Counter)

    def add(self, order: TrainOrder | EvaluateOrder, outcome: Outcome) -> None:
        """Count one work, whether anything came of it or not."""
        kind = (order.network, order.tasks, order.size)
        if isinstance(order, EvaluateOrder):
            self._evaluated[kind] += outcome.images
        else:
            self._trained[kind] += outcome.images
            self._probed[kind] += outcome.probed

    def total(self) -> dict[str, float]:
        """Operations by train (without probes), affinity, evaluate."""
        flops = {"train": 0.0, "affinity": 0.0, "evaluate": 0.0}
        for kind in {*self._trained, *self._evaluated}:
            image = count_flops(*kind)
            flops["train"] += image.train * self._trained[kind]
            flops["affinity"] += image.probe * self._probed[kind]
            flops["evaluate"] += image.evaluate * self._evaluated[kind]
        return flops
