"""Learning tasks: what a label file holds, how it becomes a target, and how a prediction is read back.

Encodings and normalisations follow Taskonomy (Zamir et al., CVPR 2018) as used by MAS (Zhuang et al., ICCV
2023).
Arrays are numpy, channels first; nothing here needs torch. numpy is imported where it is used: the agent's daemon knows
its tasks without holding it in memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]

#: Raw depth (1/512 m) from which on a pixel counts as having no surface (MAS: 16 m).
DEPTH_VALID_BELOW = 8192
DEPTH_DOMAIN = "depth_zbuffer"
INPUT_DOMAIN = "rgb"


class UnknownTasksError(ValueError):
    """Task names or letters that do not exist, or that are given twice; `faults` holds one line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One dense prediction task.

    `target = (raw * scale - mean) / std`, channel by channel; class maps keep their integer ids.
    `masked`: the loss counts only pixels with a valid depth, so the depth label is loaded too.
    `rotate`: the loss is the minimum over the nine one-pixel shifts ("rotate loss").
    `flip_negates`: channels whose sign changes when the picture is mirrored left-right.
    """

    name: str
    letter: str
    channels: int
    loss: Literal["cross_entropy", "l1"]
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    masked: bool = False
    rotate: bool = False
    flip_negates: tuple[int, ...] = ()

    @property
    def domain(self) -> str:
        """Folder of the label files; Taskonomy names domains as it names tasks."""
        return self.name

    @property
    def is_classes(self) -> bool:
        """Whether labels are class ids (label 0 is ignored by the loss)."""
        return self.loss == "cross_entropy"

    def normalise(self, raw: npt.NDArray[np.generic]) -> FloatArray:
        """Label values `[..., channels, height, width]` as stored -> float32 targets of the same shape."""
        import numpy as np

        mean, std = self._columns()
        return np.asarray((raw.astype(np.float32) * np.float32(self.scale) - mean) / std, np.float32)

    def denormalise(self, target: FloatArray) -> FloatArray:
        """Inverse of `normalise`, in the units of the label file (not clipped or rounded)."""
        import numpy as np

        mean, std = self._columns()
        return np.asarray((target * std + mean) / np.float32(self.scale), np.float32)

    def _columns(self) -> tuple[FloatArray, FloatArray]:
        import numpy as np

        shape = (-1, 1, 1)
        return np.asarray(self.mean, np.float32).reshape(shape), np.asarray(self.std, np.float32).reshape(shape)


_ALL = (
    TaskSpec("segment_semantic", "s", 18, "cross_entropy"),
    TaskSpec("depth_zbuffer", "d", 1, "l1", mean=(1500.0,), std=(1000.0,), masked=True, rotate=True),
    TaskSpec(
        "normal", "n", 3, "l1", scale=1 / 255, mean=(0.5,), std=(0.5,), masked=True, rotate=True, flip_negates=(0,)
    ),
    TaskSpec("keypoints2d", "k", 1, "l1", mean=(50.0,), std=(100.0,)),
    TaskSpec("edge_texture", "t", 1, "l1", mean=(718.0,), std=(1070.0,)),
    # Tasks that need no labels beside the picture itself, for anybody's photographs.
    TaskSpec("rgb", "a", 3, "l1", scale=1 / 255),
    TaskSpec("orientation", "o", 2, "l1", scale=1 / 255, mean=(0.5,), std=(0.5,), flip_negates=(1,)),
    TaskSpec("saliency", "v", 1, "l1", scale=1 / 65535, mean=(0.2,), std=(0.2,)),
)
#: Every task by its full name, in the paper's order.
TASKS: dict[str, TaskSpec] = {task.name: task for task in _ALL}
_BY_LETTER = {task.letter: task.name for task in _ALL}


def parse_tasks(text: str | Iterable[str]) -> tuple[str, ...]:
    """`"sdnkt"`, `"depth_zbuffer,normal"` or a list of either form -> full task names, order kept.

    Raises UnknownTasksError naming every unknown or repeated entry at once.
    """
    parts = [text] if isinstance(text, str) else list(text)
    names: list[str] = []
    faults: list[str] = []
    for part in (piece.strip() for item in parts for piece in item.split(",")):
        if part in TASKS:
            names.append(part)
        elif part and all(letter in _BY_LETTER for letter in part):
            names.extend(_BY_LETTER[letter] for letter in part)
        else:
            known = ", ".join(f"{task.letter}={task.name}" for task in TASKS.values())
            faults.append(f"unknown task {part!r}; known are {known}")
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    faults += [f"task {name} is given {names.count(name)} times" for name in repeated]
    if not names and not faults:
        faults.append("no task is given")
    if faults:
        raise UnknownTasksError(faults)
    return tuple(names)


def letters(names: Iterable[str]) -> str:
    """Full task names -> their letters, e.g. `"sdn"`, for tables and file names."""
    return "".join(TASKS[name].letter for name in names)
