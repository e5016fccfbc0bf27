"""Two tasks of the whole picture: how bright it is, and whether its colours are cold or warm."""

from __future__ import annotations

from models.tasks import TaskSpec

BRIGHTNESS = TaskSpec(
    name="brightness",
    letter="b",
    channels=1,
    loss="l1",
    kind="vector",
    # The network learns (label - mean) / std: say what your labels have, so that no task outweighs the others.
    mean=(0.5,),
    std=(0.2,),
    unit="of white",
)
WARMTH = TaskSpec(
    name="warmth", letter="w", channels=2, loss="cross_entropy", kind="vector", unit="class id", names=("cold", "warm")
)
COLOUR_TASKS = (BRIGHTNESS, WARMTH)
