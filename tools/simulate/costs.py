"""Floating-point operations of works: pictures that were really gone through, times what one picture takes.

What one takes is counted once, by torch, in a step of the same network and tasks; see `models.networks.flops`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from models.networks.flops import FlopTable
from models.wire.messages import EvaluateOrder, TrainOrder
from tools.simulate.worker import Outcome

_Kind = tuple[str, tuple[str, ...], int]


@dataclass(slots=True)
class FlopMeter:
    """Counts pictures by network, tasks and size; a multiply-accumulate is two operations."""

    _trained: Counter[_Kind] = field(default_factory=Counter)
    _probed: Counter[_Kind] = field(default_factory=Counter)
    _evaluated: Counter[_Kind] = field(default_factory=Counter)
    _weighted: Counter[_Kind] = field(default_factory=Counter)

    def add(self, order: TrainOrder | EvaluateOrder, outcome: Outcome) -> None:
        """Count one work, whether anything came of it or not."""
        kind = (order.network, order.tasks, order.size)
        if isinstance(order, EvaluateOrder):
            self._evaluated[kind] += outcome.images
        else:
            self._trained[kind] += outcome.images
            self._probed[kind] += outcome.probed
            if order.settings.loss_weighting == "gradnorm":
                self._weighted[kind] += outcome.images

    def total(self) -> dict[str, float]:
        """Operations by train (without what follows), affinity (probes), weighting (GradNorm's gradients), evaluate."""
        flops, table = {"train": 0.0, "affinity": 0.0, "weighting": 0.0, "evaluate": 0.0}, FlopTable()
        for kind in {*self._trained, *self._evaluated}:
            image = table.count(*kind)
            flops["train"] += image.train * self._trained[kind]
            flops["affinity"] += image.probe * self._probed[kind]
            flops["weighting"] += image.gradnorm * self._weighted[kind]
            flops["evaluate"] += image.evaluate * self._evaluated[kind]
        return flops
