"""Per-sample losses of the tasks, as pure functions of a `TaskSpec` (maps: as in the experiments of MAS).

Every loss is one value per sample, and says which samples count, so that means over any set of samples are exact:
the mean over a device's samples is `sum / samples`, whatever the batches were. The total loss is the plain sum of
the tasks' batch means.

A batch may lie on any device; nothing here waits for one, but the two figures that `SampleLosses` gives as Python
numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from models.tasks import TASKS, TaskSpec

IGNORED_CLASS = 0
_SHIFTS = tuple((down, right) for down in (0, 1, 2) for right in (0, 1, 2))


@dataclass(frozen=True, slots=True)
class SampleLosses:
    """Losses of a batch: `values` float32 [batch], 0 where `counted` bool [batch] is False (nothing to compare)."""

    values: Tensor
    counted: Tensor

    @property
    def samples(self) -> int:
        """How many samples count."""
        return int(self.counted.sum())

    @property
    def loss_sum(self) -> float:
        """Sum over the samples that count, in double precision."""
        return float(self.values.detach().double().sum())

    def mean(self) -> Tensor:
        """Mean over the samples that count, differentiable; 0 (with a zero gradient) when none does."""
        return self.values.sum() / self.counted.sum().clamp_min(1)


@dataclass(frozen=True, slots=True)
class Batch:
    """`rgb` float32 [batch, 3, height, width] in 0..1; `targets` by task name, as `TaskSpec` tabulates them: of maps
    float32 [batch, channels, height, width] or class ids int64 [batch, 1, height, width], of vectors float32 [batch,
    channels] or class ids int64 [batch]; `mask` float32 [batch, 1, height, width], 1 where depth is valid.
    """

    rgb: Tensor
    targets: Mapping[str, Tensor]
    mask: Tensor | None = None

    def __len__(self) -> int:
        return int(self.rgb.shape[0])


def sample_losses(task: TaskSpec, output: Tensor, target: Tensor, mask: Tensor | None = None) -> SampleLosses:
    """Losses of one task for `output` [batch, channels, height, width], or [batch, channels] of a vector, against
    `target` (see `Batch`).

    `mask` is used only by masked tasks, and must then be given (ValueError).
    """
    if task.is_vector:
        return _vector_losses(task, output.float(), target)
    if task.is_classes:
        return _cross_entropy(output, target)
    if task.masked and mask is None:
        raise ValueError(f"task {task.name} needs a mask of valid depth: load the depth label with it")
    used = mask if task.masked else None
    if task.rotate:
        output, target, used = _align(output.float(), target, used)
    return _mean_absolute(output.float(), target, used)


def batch_losses(tasks: Sequence[str], outputs: Mapping[str, Tensor], batch: Batch) -> dict[str, SampleLosses]:
    """`sample_losses` of each named task, in the order of `tasks`."""
    return {name: sample_losses(TASKS[name], outputs[name], batch.targets[name], batch.mask) for name in tasks}


def total_loss(losses: Mapping[str, SampleLosses]) -> Tensor:
    """Plain sum of the tasks' means (scalar)."""
    return torch.stack([loss.mean() for loss in losses.values()]).sum()


def flip_batch(batch: Batch, mirrored: Tensor) -> Batch:
    """Mirror the samples of `mirrored` (bool [batch]) left-right: picture, labels and mask alike.

    Channels that name a horizontal direction (`TaskSpec.flip_negates`) change their sign in mirrored samples.
    """
    mirrored = mirrored.to(batch.rgb.device, non_blocking=True)
    return Batch(
        rgb=_mirror(batch.rgb, mirrored),
        targets={name: _mirror_target(TASKS[name], target, mirrored) for name, target in batch.targets.items()},
        mask=None if batch.mask is None else _mirror(batch.mask, mirrored),
    )


def _vector_losses(task: TaskSpec, output: Tensor, target: Tensor) -> SampleLosses:
    """Losses of `output` [batch, channels]; every sample counts, for a vector has no label that is left out."""
    if task.loss == "cross_entropy":
        values = functional.cross_entropy(output, target.long(), reduction="none")
    elif task.loss == "bce":
        values = functional.binary_cross_entropy_with_logits(output, target, reduction="none").mean(1)
    else:
        values = (output - target).abs().mean(1)
    return SampleLosses(values, torch.ones_like(values, dtype=torch.bool))


def _cross_entropy(output: Tensor, target: Tensor) -> SampleLosses:
    classes = target.reshape(target.shape[0], *target.shape[-2:]).long()
    pixels = functional.cross_entropy(output.float(), classes, ignore_index=IGNORED_CLASS, reduction="none")
    labelled = (classes != IGNORED_CLASS).flatten(1).sum(1)
    return SampleLosses(pixels.flatten(1).sum(1) / labelled.clamp_min(1), labelled > 0)


def _mean_absolute(output: Tensor, target: Tensor, mask: Tensor | None) -> SampleLosses:
    error = (output - target).abs()
    if mask is None:
        values = error.flatten(1).mean(1)
        return SampleLosses(values, torch.ones_like(values, dtype=torch.bool))
    valid = mask.flatten(1).sum(1)
    values = (error * mask).flatten(1).sum(1) / (valid * output.shape[1]).clamp_min(1)
    return SampleLosses(values, valid > 0)


def _align(output: Tensor, target: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """Interior of `output`, and for each sample the one of nine label windows (its mask with it) that fits best.

    The gradient of a minimum is the gradient of the smallest term, so the windows are compared without a graph.
    """
    interior = output[..., 1:-1, 1:-1]
    with torch.no_grad():
        fits = torch.stack([_misfit(interior, target, mask, down, right) for down, right in _SHIFTS])
        best = fits.argmin(0)
        target = _windows(target, best)
        return interior, target, None if mask is None else _windows(mask, best)


def _windows(maps: Tensor, shift: Tensor) -> Tensor:
    """Of each of `maps` [batch, channels, height, width] the window of its `shift` [batch] (a number of `_SHIFTS`).

    The windows are views of the maps, so this copies one window of each and no more.
    """
    height, width = maps.shape[-2] - 2, maps.shape[-1] - 2
    windows = maps.unfold(2, height, 1).unfold(3, width, 1)  # [batch, channels, 3, 3, height, width]
    samples = torch.arange(len(maps), device=maps.device)
    return windows[samples, :, shift // 3, shift % 3]


def _misfit(interior: Tensor, target: Tensor, mask: Tensor | None, down: int, right: int) -> Tensor:
    """Loss [batch] against one shifted window; infinite where the window has no valid pixel."""
    rows, columns = slice(down, down + interior.shape[-2]), slice(right, right + interior.shape[-1])
    shifted = None if mask is None else mask[..., rows, columns]
    losses = _mean_absolute(interior, target[..., rows, columns], shifted)
    return losses.values.masked_fill(~losses.counted, torch.inf)


def _mirror(maps: Tensor, mirrored: Tensor) -> Tensor:
    return torch.where(mirrored.view(-1, 1, 1, 1), maps.flip(-1), maps)


def _mirror_target(task: TaskSpec, target: Tensor, mirrored: Tensor) -> Tensor:
    if task.is_vector:
        return target  # what is said of a picture holds of its mirror image
    result = _mirror(target, mirrored)
    if task.flip_negates:
        chosen = mirrored.view(-1, 1, 1)
        for channel in task.flip_negates:
            values = result[:, channel]
            result[:, channel] = torch.where(chosen, -values, values)
    return result
