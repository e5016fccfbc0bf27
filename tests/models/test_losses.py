"""Losses against values worked by hand and against slow, obvious versions."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from models.losses import Batch, batch_losses, flip_batch, sample_losses, total_loss
from models.tasks import TASKS, TaskSpec

SEGMENT = TASKS["segment_semantic"]
PLAIN = TASKS["keypoints2d"]
DEPTH = TASKS["depth_zbuffer"]
MASKED = replace(DEPTH, rotate=False)


def test_cross_entropy_by_hand_ignores_label_zero() -> None:
    task = replace(SEGMENT, channels=3)
    output = torch.zeros(2, 3, 1, 2)
    output[0, :, 0, 0] = torch.tensor([0.0, math.log(2.0), 0.0])  # probabilities 1/4, 1/2, 1/4
    target = torch.tensor([[[[1, 0]]], [[[0, 0]]]])
    losses = sample_losses(task, output, target)
    assert_close(losses.values, torch.tensor([math.log(2.0), 0.0]))
    assert losses.counted.tolist() == [True, False]
    assert losses.samples == 1
    assert_close(losses.mean(), torch.tensor(math.log(2.0)))


def test_cross_entropy_is_the_mean_over_labelled_pixels_of_each_sample() -> None:
    torch.manual_seed(0)
    output, target = torch.randn(3, 18, 4, 5), torch.randint(0, 18, (3, 1, 4, 5))
    expected = []
    for i in range(3):
        pixels = [
            -torch.log_softmax(output[i, :, y, x], 0)[target[i, 0, y, x]]
            for y in range(4)
            for x in range(5)
            if target[i, 0, y, x] != 0
        ]
        expected.append(torch.stack(pixels).mean())
    assert_close(sample_losses(SEGMENT, output, target).values, torch.stack(expected))


def test_plain_l1_by_hand() -> None:
    output = torch.tensor([[[[1.0, 2.0]]], [[[0.0, 0.0]]]])
    target = torch.tensor([[[[0.0, 4.0]]], [[[0.0, -1.0]]]])
    losses = sample_losses(PLAIN, output, target)
    assert losses.values.tolist() == [1.5, 0.5]
    assert losses.loss_sum == 2.0
    assert losses.mean().item() == 1.0


def test_masked_l1_means_over_valid_pixels_and_drops_samples_without_any() -> None:
    output = torch.tensor([[[[3.0, 9.0]]], [[[5.0, 5.0]]], [[[1.0, 2.0]]]])
    target = torch.zeros(3, 1, 1, 2)
    mask = torch.tensor([[[[1.0, 0.0]]], [[[0.0, 0.0]]], [[[1.0, 1.0]]]])
    losses = sample_losses(MASKED, output, target, mask)
    assert losses.values.tolist() == [3.0, 0.0, 1.5]
    assert losses.counted.tolist() == [True, False, True]
    assert losses.mean().item() == 2.25


def test_masked_l1_of_several_channels_divides_by_all_their_values() -> None:
    task = replace(TASKS["normal"], rotate=False)
    output = torch.tensor([1.0, 2.0, 6.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    mask = torch.tensor([[[[1.0, 0.0]]]])
    assert sample_losses(task, output, torch.zeros(1, 3, 1, 2), mask).values.tolist() == [3.0]


def test_masked_task_without_mask_says_what_is_missing() -> None:
    with pytest.raises(ValueError, match="depth_zbuffer needs a mask"):
        sample_losses(DEPTH, torch.zeros(1, 1, 4, 4), torch.zeros(1, 1, 4, 4))


def test_nothing_valid_gives_zero_and_zero_gradient() -> None:
    output = torch.randn(2, 1, 4, 4, requires_grad=True)
    loss = sample_losses(DEPTH, output, torch.ones(2, 1, 4, 4), torch.zeros(2, 1, 4, 4))
    assert (loss.samples, loss.loss_sum) == (0, 0.0)
    (gradient,) = torch.autograd.grad(loss.mean(), output)
    assert torch.count_nonzero(gradient) == 0


def _rotate_slowly(output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor) -> list[float]:
    """The rotate loss as it reads: for each sample, the best of nine comparisons, pixel by pixel."""
    batch, channels, height, width = output.shape
    results = []
    for i in range(batch):
        fits = []
        for dy in (-1, 0, 1):
            for dx in (-1, 0, 1):
                pixels = [
                    abs(float(output[i, c, y, x]) - float(target[i, c, y + dy, x + dx]))
                    for c in range(channels)
                    for y in range(1, height - 1)
                    for x in range(1, width - 1)
                    if mask[i, 0, y + dy, x + dx] > 0
                ]
                if pixels:
                    fits.append(sum(pixels) / len(pixels))
        results.append(min(fits) if fits else 0.0)
    return results


def test_rotate_loss_equals_the_slow_version() -> None:
    torch.manual_seed(1)
    task = TASKS["normal"]
    output, target = torch.randn(6, 3, 6, 5), torch.randn(6, 3, 6, 5)
    mask = (torch.rand(6, 1, 6, 5) < 0.3).float()
    mask[4] = 0
    losses = sample_losses(task, output, target, mask)
    assert_close(losses.values, torch.tensor(_rotate_slowly(output, target, mask)))
    assert losses.counted.tolist() == [True, True, True, True, False, True]


@pytest.mark.parametrize(("dy", "dx"), [(1, 0), (-1, 1), (0, -1)])
def test_rotate_loss_forgives_one_pixel_and_not_two(dy: int, dx: int) -> None:
    torch.manual_seed(2)
    target = torch.randn(1, 1, 12, 12)
    mask = torch.ones(1, 1, 12, 12)
    near = sample_losses(DEPTH, target.roll((dy, dx), (2, 3)), target, mask)
    far = sample_losses(DEPTH, target.roll((2 * dy, 2 * dx), (2, 3)), target, mask)
    assert near.values.item() == 0.0
    assert far.values.item() > 0.5


def test_rotate_loss_moves_the_mask_with_the_label() -> None:
    torch.manual_seed(3)
    target = torch.randn(1, 1, 8, 8)
    output = target.roll((0, 1), (2, 3))
    mask = torch.ones(1, 1, 8, 8)
    target[0, 0, 3, 3] = 1000.0  # an invalid label, where the output knows better
    mask[0, 0, 3, 3] = 0.0
    assert sample_losses(DEPTH, output, target, mask).values.item() == 0.0


def test_gradient_of_the_rotate_loss_is_that_of_its_best_shift() -> None:
    torch.manual_seed(4)
    output = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)
    target = torch.randn(2, 1, 6, 6, dtype=torch.float64)
    mask = (torch.rand(2, 1, 6, 6) < 0.7).double()
    loss = sample_losses(DEPTH, output.float(), target, mask).mean()
    (gradient,) = torch.autograd.grad(loss, output)
    for index in [(0, 0, 2, 3), (1, 0, 1, 4), (0, 0, 0, 0)]:
        moved = []
        for change in (1e-3, -1e-3):
            shifted = output.detach().clone()
            shifted[index] += change
            moved.append(float(sample_losses(DEPTH, shifted.float(), target, mask).mean()))
        assert gradient[index].item() == pytest.approx((moved[0] - moved[1]) / 2e-3, abs=1e-3)


def test_total_is_the_plain_sum_of_the_tasks_means() -> None:
    torch.manual_seed(5)
    tasks = ("segment_semantic", "depth_zbuffer", "keypoints2d")
    batch = Batch(
        rgb=torch.rand(4, 3, 8, 8),
        targets={
            "segment_semantic": torch.randint(1, 18, (4, 1, 8, 8)),
            "depth_zbuffer": torch.randn(4, 1, 8, 8),
            "keypoints2d": torch.randn(4, 1, 8, 8),
        },
        mask=torch.ones(4, 1, 8, 8),
    )
    outputs = {name: torch.randn(4, TASKS[name].channels, 8, 8) for name in tasks}
    losses = batch_losses(tasks, outputs, batch)
    assert tuple(losses) == tasks
    assert_close(total_loss(losses), sum(losses[name].values.mean() for name in tasks))


def test_sums_over_any_batching_give_the_same_mean() -> None:
    torch.manual_seed(6)
    output, target = torch.randn(7, 1, 8, 8), torch.randn(7, 1, 8, 8)
    mask = (torch.rand(7, 1, 8, 8) < 0.5).float()
    mask[2] = 0
    whole = sample_losses(DEPTH, output, target, mask)
    parts = [sample_losses(DEPTH, output[s], target[s], mask[s]) for s in (slice(0, 3), slice(3, 7))]
    assert sum(part.samples for part in parts) == whole.samples == 6
    assert sum(part.loss_sum for part in parts) == pytest.approx(whole.loss_sum, rel=1e-6)


def _gradient_free_target(task: TaskSpec, target: torch.Tensor) -> Batch:
    return Batch(torch.arange(24.0).view(2, 3, 2, 2), {task.name: target}, torch.arange(8.0).view(2, 1, 2, 2))


def test_flip_mirrors_picture_labels_and_mask_of_the_chosen_samples() -> None:
    target = torch.arange(8).view(2, 1, 2, 2)
    batch = _gradient_free_target(SEGMENT, target)
    flipped = flip_batch(batch, torch.tensor([False, True]))
    assert_close(flipped.rgb[0], batch.rgb[0])
    assert_close(flipped.rgb[1], batch.rgb[1].flip(-1))
    assert flipped.targets["segment_semantic"].tolist() == [[[[0, 1], [2, 3]]], [[[5, 4], [7, 6]]]]
    assert flipped.mask is not None
    assert flipped.mask[1].tolist() == [[[5.0, 4.0], [7.0, 6.0]]]


@pytest.mark.parametrize(("name", "negated"), [("normal", 0), ("orientation", 1)])
def test_flip_negates_horizontal_directions(name: str, negated: int) -> None:
    torch.manual_seed(7)
    task = TASKS[name]
    target = torch.randn(2, task.channels, 2, 2)
    flipped = flip_batch(_gradient_free_target(task, target), torch.tensor([True, False])).targets[name]
    signs = torch.tensor([-1.0 if channel == negated else 1.0 for channel in range(task.channels)]).view(-1, 1, 1)
    assert_close(flipped[0], target[0].flip(-1) * signs)
    assert_close(flipped[1], target[1])


def test_flipping_twice_changes_nothing() -> None:
    torch.manual_seed(8)
    task = TASKS["normal"]
    batch = _gradient_free_target(task, torch.randn(2, 3, 2, 2))
    twice = flip_batch(flip_batch(batch, torch.tensor([True, True])), torch.tensor([True, True]))
    assert_close(twice.targets["normal"], batch.targets["normal"])
    assert_close(twice.rgb, batch.rgb)


# --- the bits of a CPU's figures: what is gathered on any device is what was picked sample by sample -----------------


def _aligned_one_by_one(
    output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The windows of the rotate loss, chosen with Python's own list and slices."""
    height, width = output.shape[-2] - 2, output.shape[-1] - 2
    shifts = [(down, right) for down in range(3) for right in range(3)]
    interior = output[..., 1:-1, 1:-1]
    fits = []
    for down, right in shifts:
        part, valid = (maps[..., down : down + height, right : right + width] for maps in (target, mask))
        count = valid.flatten(1).sum(1)
        loss = ((interior - part).abs() * valid).flatten(1).sum(1) / (count * output.shape[1]).clamp_min(1)
        fits.append(loss.masked_fill(count == 0, math.inf))
    best = [shifts[i] for i in torch.stack(fits).argmin(0).tolist()]

    def windows(maps: torch.Tensor) -> torch.Tensor:
        return torch.stack([maps[i, :, d : d + height, r : r + width] for i, (d, r) in enumerate(best)])

    return interior, windows(target), windows(mask)


@pytest.mark.parametrize("name", ["depth_zbuffer", "normal", "edge_occlusion"])
def test_rotate_loss_has_the_bits_of_samples_aligned_one_by_one(name: str) -> None:
    torch.manual_seed(9)
    task = TASKS[name]
    output = torch.randn(8, task.channels, 9, 7, requires_grad=True)
    target, mask = torch.randn(8, task.channels, 9, 7), (torch.rand(8, 1, 9, 7) < 0.5).float()
    mask[3] = 0
    found = sample_losses(task, output, target, mask)
    wanted = sample_losses(replace(task, rotate=False), *_aligned_one_by_one(output, target, mask))
    assert torch.equal(found.values, wanted.values)
    assert torch.equal(found.counted, wanted.counted)
    gradients = [torch.autograd.grad(losses.mean(), output)[0] for losses in (found, wanted)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("name", ["normal", "orientation"])
def test_flip_has_the_bits_of_a_multiplication_with_signs(name: str) -> None:
    torch.manual_seed(10)
    task = TASKS[name]
    target = torch.randn(4, task.channels, 3, 5)
    target[:, :, 0, 0] = 0.0
    mirrored = torch.tensor([True, False, True, True])
    signs = torch.ones(task.channels)
    signs[list(task.flip_negates)] = -1
    where = mirrored.view(-1, 1, 1, 1)
    plain = torch.where(where, target.flip(-1), target)
    wanted = torch.where(where, plain * signs.view(1, -1, 1, 1), plain)
    found = flip_batch(Batch(torch.zeros(4, 3, 3, 5), {name: target.clone()}), mirrored).targets[name]
    assert torch.equal(found.view(torch.int32), wanted.view(torch.int32)), "the sign of zero is a bit too"


def test_flip_leaves_the_batch_it_was_given() -> None:
    target = torch.arange(12.0).view(1, 3, 2, 2)
    batch = Batch(torch.arange(12.0).view(1, 3, 2, 2), {"normal": target})
    flip_batch(batch, torch.tensor([True]))
    assert target.flatten().tolist() == list(range(12))


@pytest.mark.parametrize("name", list(TASKS))
def test_losses_and_flips_never_leave_the_device(name: str) -> None:
    """On the meta device no value exists: whatever asks for one, or makes a tensor elsewhere, fails."""
    task, size = TASKS[name], 6
    shape = (4, task.channels) if task.is_vector else (4, task.channels, size, size)
    wanted = shape if task.loss != "cross_entropy" else (4,) if task.is_vector else (4, 1, size, size)
    dtype = torch.int64 if task.loss == "cross_entropy" else torch.float32
    target = torch.empty(wanted, dtype=dtype, device="meta")
    maps = [torch.empty(4, channels, size, size, device="meta") for channels in (3, 1)]
    batch = flip_batch(Batch(maps[0], {name: target}, maps[1]), torch.tensor([True, False, True, False]))
    losses = batch_losses([name], {name: torch.empty(shape, device="meta", dtype=torch.bfloat16)}, batch)
    total = total_loss(losses)
    assert (total.device.type, total.dtype, losses[name].values.shape) == ("meta", torch.float32, (4,))


# --- vectors ---------------------------------------------------------------------------------------------------------


def test_image_class_by_hand_ignores_no_class() -> None:
    task = replace(TASKS["class_scene"], channels=2)
    output = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])  # probabilities 3/4, 1/4
    losses = sample_losses(task, output, torch.tensor([0, 1]))
    assert_close(losses.values, torch.tensor([math.log(4 / 3), math.log(4.0)]))
    assert losses.counted.tolist() == [True, True]


def test_multi_label_by_hand_is_the_mean_over_the_classes() -> None:
    task = replace(TASKS["class_object"], channels=2)
    output = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])  # probabilities 1/2, 3/4
    losses = sample_losses(task, output, torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
    expected = [(math.log(2.0) + math.log(4 / 3)) / 2, (math.log(2.0) + math.log(4.0)) / 2]
    assert_close(losses.values, torch.tensor(expected))
    assert losses.samples == 2


def test_regression_by_hand() -> None:
    losses = sample_losses(TASKS["distance"], torch.tensor([[1.5], [-1.0]]), torch.tensor([[1.0], [1.0]]))
    assert losses.values.tolist() == [0.5, 2.0]
    assert losses.loss_sum == 2.5


def test_flip_leaves_what_is_said_of_a_whole_picture() -> None:
    targets = {"class_scene": torch.tensor([3, 4]), "class_object": torch.rand(2, 18), "distance": torch.rand(2, 1)}
    flipped = flip_batch(Batch(torch.rand(2, 3, 4, 4), targets), torch.tensor([True, False]))
    assert all(torch.equal(flipped.targets[name], target) for name, target in targets.items())
