"""The published figures that ours stand beside: MAS (Zhuang et al., ICCV 2023), the result plot, read off by hand.

Nine Taskonomy tasks, 32 buildings as clients, R = 100 rounds. Losses are good to +-0.001, hours to +-0.1.
"""

from __future__ import annotations

from dataclasses import dataclass

LOSS_ERROR, HOURS_ERROR = 0.001, 0.1
SOURCE = "Zhuang et al., “MAS: Towards Resource-Efficient Federated Multiple-Task Learning”, ICCV 2023, result plot"


@dataclass(frozen=True, slots=True)
class Published:
    """One method: GPU hours and the total test loss, lower is better. `splits` is 0 where the method has no such k."""

    scheme: str
    splits: int
    hours: float
    loss: float


PUBLISHED = (
    Published("one-by-one", 0, 16.88, 0.603),
    Published("all-in-one", 0, 7.28, 0.677),
    Published("gradnorm", 0, 7.77, 0.691),
    Published("fedprox", 0, 7.69, 0.711),
    Published("mas", 2, 8.80, 0.578),
    Published("mas", 3, 9.72, 0.555),
    Published("mas", 4, 12.89, 0.548),
    Published("tag", 2, 17.40, 0.624),
    Published("tag", 3, 20.55, 0.613),
    Published("tag", 4, 25.19, 0.602),
    Published("hoa", 2, 63.0, 0.651),
    Published("hoa", 3, 63.0, 0.597),
)


def published(scheme: str, splits: int) -> Published | None:
    """The published figures of a method, if there are any."""
    return next((entry for entry in PUBLISHED if (entry.scheme, entry.splits) == (scheme, splits)), None)


def hours_ratio(entry: Published) -> float:
    """GPU hours as a share of one-by-one's."""
    return entry.hours / PUBLISHED[0].hours


def loss_ratio(entry: Published) -> float:
    """Loss as a share of one-by-one's."""
    return entry.loss / PUBLISHED[0].loss
