"""Learning tasks: what a label file holds, how it becomes a target, and how a prediction is read back.

Encodings and normalisations follow Taskonomy (Zamir et al., CVPR 2018) as used by MAS (Zhuang et al., ICCV 2023). A
package adds tasks of its own through entry points of the group `mas_edge.tasks`.
Arrays are numpy, channels first; nothing here needs torch. numpy is imported where it is used: the agent's daemon knows
its tasks without holding it in memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from models.plugins import Registry

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float32]

#: Raw depth (1/512 m) from which on a pixel counts as having no surface (MAS: 16 m).
DEPTH_VALID_BELOW = 8192
DEPTH_DOMAIN = "depth_zbuffer"
INPUT_DOMAIN = "rgb"

Kind = Literal["map", "vector"]
Loss = Literal["cross_entropy", "l1", "bce"]
Encoding = Literal["rgb8", "grey8", "grey16"]


class UnknownTasksError(ValueError):
    """Task names or letters that do not exist, or that are given twice; `faults` holds one line for each."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("; ".join(faults))
        self.faults = tuple(faults)


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One prediction task: a map (a value for each pixel) or a vector (values for the whole picture).

    | kind | loss | what it is | target |
    |---|---|---|---|
    | map | cross_entropy | class map, label 0 ignored | int64 `[batch, 1, height, width]` |
    | map | l1 | values of pixels | float32 `[batch, channels, height, width]` |
    | vector | cross_entropy | one class of the picture, none ignored | int64 `[batch]` |
    | vector | bce | several classes at once | float32 `[batch, channels]`, 0 or 1 |
    | vector | l1 | numbers | float32 `[batch, channels]` |

    `target = (stored * scale - mean) / std`, channel by channel; class ids and 0/1 labels stay as they are.
    `encoding`: how the label files of a map are stored. Those of a vector are JSON: a number, or an array of them.
    `averaged`: the map's one channel is the mean of the file's channels.
    `masked`: the loss counts only pixels with a valid depth, so the depth label is loaded too.
    `rotate`: the loss is the minimum over the nine one-pixel shifts ("rotate loss").
    `flip_negates`: channels of a map whose sign changes when the picture is mirrored left-right.
    `unit`: of the values in the label files. `names`: of the classes, by id; empty where each dataset has its own.
    """

    name: str
    letter: str
    channels: int
    loss: Loss
    kind: Kind = "map"
    encoding: Encoding = "grey16"
    scale: float = 1.0
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    averaged: bool = False
    masked: bool = False
    rotate: bool = False
    flip_negates: tuple[int, ...] = ()
    unit: str = "label units"
    names: tuple[str, ...] = ()

    @property
    def domain(self) -> str:
        """Folder of the label files; Taskonomy names domains as it names tasks."""
        return self.name

    @property
    def is_vector(self) -> bool:
        """Whether the task says something of the whole picture, and not of each pixel."""
        return self.kind == "vector"

    @property
    def is_classes(self) -> bool:
        """Whether labels are maps of class ids (label 0 is ignored by the loss)."""
        return self.kind == "map" and self.loss == "cross_entropy"

    @property
    def is_values(self) -> bool:
        """Whether labels are measured values, which are normalised; else they are class ids or 0/1."""
        return self.loss == "l1"

    def faults(self) -> list[str]:
        """Everything that makes this no task that can be trained; empty for a sound one."""
        return [f"task {self.name!r}: {fault}" for fault in _spec_faults(self)]

    def normalise(self, raw: npt.NDArray[np.generic]) -> FloatArray:
        """Label values as stored -> float32 targets.

        Maps: `[..., channels, height, width]` (any number of channels where the task averages them); vectors:
        `[..., channels]`.
        """
        import numpy as np

        mean, std = self._columns()
        values = raw.astype(np.float32)
        if self.averaged:
            values = values.sum(-3, keepdims=True, dtype=np.float32) / np.float32(raw.shape[-3])
        values *= np.float32(self.scale)
        values -= mean
        values /= std
        return values

    def denormalise(self, target: FloatArray) -> FloatArray:
        """Inverse of `normalise`, in the units of the label file (not clipped or rounded)."""
        import numpy as np

        mean, std = self._columns()
        return np.asarray((target * std + mean) / np.float32(self.scale), np.float32)

    def _columns(self) -> tuple[FloatArray, FloatArray]:
        import numpy as np

        shape = (-1,) if self.is_vector else (-1, 1, 1)
        return np.asarray(self.mean, np.float32).reshape(shape), np.asarray(self.std, np.float32).reshape(shape)


def _spec_faults(task: TaskSpec) -> Iterator[str]:
    """What a plug-in may get wrong, in words that its author can act on."""
    if not _NAME.fullmatch(task.name):
        yield "a name is lower-case letters, digits and underscores, and starts with a letter"
    if len(task.letter) != 1 or not (task.letter.isascii() and task.letter.isalpha()):
        yield f"letter {task.letter!r} is not a single letter a-z or A-Z"
    if task.channels < 1:
        yield f"{task.channels} channels; at least 1 is needed"
    losses = _LOSSES.get(task.kind)
    if losses is None:
        yield f"kind {task.kind!r}; known are {', '.join(_LOSSES)}"
    elif task.loss not in losses:
        yield f"it has no usable loss: {task.loss!r} for a {task.kind}; known are {', '.join(losses)}"
    if task.encoding not in _FILE_CHANNELS:
        yield f"encoding {task.encoding!r}; known are {', '.join(_FILE_CHANNELS)}"
    elif task.kind == "map":
        wanted = 1 if task.is_classes or task.averaged else task.channels
        if wanted > _FILE_CHANNELS[task.encoding] or (task.is_classes and task.encoding == "rgb8"):
            yield f"files of encoding {task.encoding} cannot hold its labels"
    if task.names and (task.is_values or len(task.names) != task.channels):
        yield f"{len(task.names)} names for {task.channels} channels of {task.loss}; classes have one each, or none"
    yield from _normalisation_faults(task)


def _normalisation_faults(task: TaskSpec) -> Iterator[str]:
    for name, values in (("mean", task.mean), ("std", task.std)):
        if len(values) not in (1, task.channels):
            yield f"{len(values)} values of {name} for {task.channels} channels; give one, or one for each"
    if not task.scale or not all(task.std):
        yield "scale and std must not be 0"
    if task.averaged and task.channels != 1:
        yield "averaged leaves one channel"
    of_values = task.kind == "map" and task.is_values
    for option in ("averaged", "masked", "rotate", "flip_negates"):
        if getattr(task, option) and not of_values:
            yield f"{option} is for maps of values (loss l1)"
    if any(not 0 <= channel < task.channels for channel in task.flip_negates):
        yield f"flip_negates {task.flip_negates} names channels that it does not have"


_NAME = re.compile(r"[a-z][a-z0-9_]*")
_LOSSES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"map": ("cross_entropy", "l1"), "vector": ("cross_entropy", "bce", "l1")}
)
_FILE_CHANNELS: Mapping[str, int] = MappingProxyType({"rgb8": 3, "grey8": 1, "grey16": 1})
_BYTE = 1 / 255
_CLASSES = 18
_RESPONSE = "16-bit response"
_DIRECTION = "8-bit, 127.5 = 0"

# Mirroring. A normal's x component changes its sign with the picture, and so does the sine of twice an edge's angle
# (orientation). Depth, edges and shading are scalars. The principal curvatures are scalars too: eigenvalues of the
# surface's shape operator, whose signs depend only on the side from which the normal is taken. That side is the
# camera's, a mirrored room shows the camera the mirrored side, and so a dent stays a dent. (Their directions would
# turn; Taskonomy does not store them.)
_ALL = (
    TaskSpec("segment_semantic", "s", _CLASSES, "cross_entropy", encoding="grey8", unit="class id, 0 = ignored"),
    TaskSpec("depth_zbuffer", "d", 1, "l1", mean=(1500.0,), std=(1000.0,), masked=True, rotate=True, unit="1/512 m"),
    TaskSpec(
        "normal", "n", 3, "l1", encoding="rgb8", scale=_BYTE, mean=(0.5,), std=(0.5,),
        masked=True, rotate=True, flip_negates=(0,), unit=_DIRECTION,
    ),
    TaskSpec("keypoints2d", "k", 1, "l1", mean=(50.0,), std=(100.0,), unit=_RESPONSE),
    TaskSpec("edge_texture", "t", 1, "l1", mean=(718.0,), std=(1070.0,), unit=_RESPONSE),
    TaskSpec(
        "edge_occlusion", "e", 1, "l1", mean=(56.0248,), std=(239.1265,), masked=True, rotate=True, unit=_RESPONSE
    ),
    # The published means of these two are of values in 0..1; the files have eight bits.
    TaskSpec(
        "reshading", "r", 1, "l1", encoding="rgb8", scale=_BYTE, mean=(0.4962,), std=(0.2846,),
        averaged=True, masked=True, unit="8-bit",
    ),
    TaskSpec(
        "principal_curvature", "c", 2, "l1", encoding="rgb8", scale=_BYTE, mean=(0.5175, 0.4987),
        std=(0.1373, 0.0359), masked=True, unit="8-bit, 127 = flat",
    ),
    # Tasks that need no labels beside the picture itself, for anybody's photographs.
    TaskSpec("rgb", "a", 3, "l1", encoding="rgb8", scale=_BYTE, unit="8-bit"),
    TaskSpec(
        "orientation", "o", 2, "l1", encoding="rgb8", scale=_BYTE, mean=(0.5,), std=(0.5,), flip_negates=(1,),
        unit=_DIRECTION,
    ),
    TaskSpec("saliency", "v", 1, "l1", scale=1 / 65535, mean=(0.2,), std=(0.2,), unit=_RESPONSE),
    # Tasks of the whole picture: the kind of room, which of the semantic classes can be seen, and how far away the
    # scene is on average (metres, over pixels of valid depth).
    TaskSpec("class_scene", "p", 16, "cross_entropy", kind="vector", unit="class id"),
    TaskSpec("class_object", "m", _CLASSES, "bce", kind="vector", unit="1 = visible"),
    TaskSpec("distance", "z", 1, "l1", kind="vector", mean=(3.0,), std=(1.5,), unit="m"),
)  # fmt: skip


def _from_plugin(point: str, loaded: object) -> dict[str, TaskSpec]:
    """What an entry point of `mas_edge.tasks` loads to: a task, or a tuple of tasks."""
    tasks = loaded if isinstance(loaded, tuple) else (loaded,)
    if not tasks or not all(isinstance(task, TaskSpec) for task in tasks):
        raise TypeError(f"{point} must be a TaskSpec or a tuple of them, and is {loaded!r}")
    if faults := [fault for task in tasks for fault in task.faults()]:
        raise ValueError("; ".join(faults))
    repeated = sorted({task.name for task in tasks if [other.name for other in tasks].count(task.name) > 1})
    if repeated:
        raise ValueError(f"{point} has more than one task of the name {', '.join(repeated)}")
    return {task.name: task for task in tasks}


#: Every task by its full name, in the paper's order: those built in, then those of installed packages.
TASKS: Registry[TaskSpec] = Registry(
    "mas_edge.tasks",
    {task.name: task for task in _ALL},
    _from_plugin,
    marks=lambda task: (f"letter {task.letter}",),
)


def parse_tasks(text: str | Iterable[str]) -> tuple[str, ...]:
    """`"sdnkt"`, `"depth_zbuffer,normal"` or a list of either form -> full task names, order kept.

    Raises UnknownTasksError naming every unknown or repeated entry at once.
    """
    parts = [text] if isinstance(text, str) else list(text)
    names: list[str] = []
    faults: list[str] = []
    by_letter = {task.letter: task.name for task in TASKS.values()}
    for part in (piece.strip() for item in parts for piece in item.split(",")):
        if part in TASKS:
            names.append(part)
        elif part and all(letter in by_letter for letter in part):
            names.extend(by_letter[letter] for letter in part)
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
