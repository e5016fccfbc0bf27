"""Networks: parts that merge and split exactly, any input size, and the encoder's gradient scaling."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from models.networks import (
    NETWORKS,
    MultiTaskNet,
    NetworkParts,
    UnknownNetworkError,
    build_network,
    export_state,
    load_state,
)
from models.state import StateError, merge_states, split_state
from models.tasks import TASKS, parse_tasks

ALL = parse_tasks("sdnkt")


@pytest.mark.parametrize("name", ["pi", "xception-half"])
@pytest.mark.parametrize(("height", "width"), [(64, 64), (33, 50), (128, 80)])
def test_outputs_have_the_picture_size_and_the_tasks_channels(name: str, height: int, width: int) -> None:
    network = build_network(name, ALL, 64, seed=0)
    outputs = network(torch.rand(2, 3, height, width))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        name: (2, TASKS[name].channels, height, width) for name in ALL
    }


@pytest.mark.parametrize(
    ("name", "published"),
    [("xception-small", 4.089), ("xception-half", 2.052), ("xception-quad", 15.96)],
)
def test_encoders_have_the_published_sizes(name: str, published: float) -> None:
    digits = 2 if name == "xception-quad" else 3
    parameters = sum(value.numel() for value in NETWORKS[name].encoder().parameters())
    assert round(parameters / 1e6, digits) == published


@pytest.mark.parametrize("task", parse_tasks("sdnkterca"))
def test_every_head_has_the_published_size(task: str) -> None:
    head = NETWORKS["xception-small"].head(TASKS[task].channels)
    assert round(sum(value.numel() for value in head.parameters()) / 1e6, 3) == 0.116


def test_the_representation_is_256_channels_at_stride_16_in_every_size() -> None:
    for name in ("xception-small", "xception-half", "xception-quad"):
        encoder = NETWORKS[name].encoder().to("meta")
        assert encoder(torch.empty(2, 3, 256, 256, device="meta")).shape == (2, 256, 16, 16)


@pytest.mark.parametrize("name", ["pi", "xception-half"])
def test_tasks_of_the_whole_picture_give_vectors_beside_maps(name: str) -> None:
    tasks = ("class_scene", "normal", "class_object", "distance")
    outputs = build_network(name, tasks, 64, seed=0)(torch.rand(2, 3, 33, 50))
    assert {name: tuple(value.shape) for name, value in outputs.items()} == {
        "class_scene": (2, 16), "normal": (2, 3, 33, 50), "class_object": (2, 18), "distance": (2, 1)
    }  # fmt: skip


def test_a_vector_is_the_linear_map_of_the_mean_representation() -> None:
    network = build_network("xception-half", ("distance",), 64, seed=0).eval()
    rgb = torch.rand(2, 3, 64, 64)
    head = network.heads["distance"].predict
    features = network.encoder(rgb).clamp_min(0).flatten(2).mean(2)
    torch.testing.assert_close(network(rgb)["distance"], features @ head.weight.T + head.bias)


def test_a_network_without_vectors_refuses_tasks_that_need_them() -> None:
    tiny = NetworkParts(lambda: nn.Conv2d(3, 4, 1), lambda channels: nn.Conv2d(4, channels, 1), stride=1)
    with pytest.raises(ValueError, match="no head for class_scene"):
        build_network("tiny", ("class_scene",), 8, seed=0, networks={"tiny": tiny})


def test_every_layer_of_an_xception_is_used_and_learns() -> None:
    network = build_network("xception-half", ("normal", "distance"), 64, seed=0).train()
    outputs = network(torch.rand(2, 3, 64, 64))
    torch.stack([value.square().mean() for value in outputs.values()]).sum().backward()
    idle = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_padding_leaves_sizes_that_fit_alone() -> None:
    network = build_network("pi", ("keypoints2d",), 64, seed=0).eval()
    rgb = torch.rand(1, 3, 64, 64)
    direct = network.heads["keypoints2d"](network.encoder(rgb))
    assert torch.equal(network(rgb)["keypoints2d"], direct)


def test_encoder_is_the_same_for_any_tasks_and_heads_for_any_company() -> None:
    whole = export_state(build_network("pi", ALL, 64, seed=3))
    for tasks in (("normal",), ("keypoints2d", "segment_semantic")):
        part = export_state(build_network("pi", tasks, 64, seed=3))
        expected = split_state(whole, tasks)
        assert set(part) == set(expected)
        assert all(np.array_equal(part[name], expected[name]) for name in part)


def test_other_seeds_and_tasks_start_elsewhere() -> None:
    first, second = (export_state(build_network("pi", parse_tasks("dk"), 64, seed)) for seed in (0, 1))
    moved = [name for name in first if name.endswith("0.weight") and np.array_equal(first[name], second[name])]
    assert not [name for name in moved if first[name].ndim == 4]
    depth, keypoints = ("heads.depth_zbuffer.predict.weight", "heads.keypoints2d.predict.weight")
    assert first[depth].shape == first[keypoints].shape
    assert not np.array_equal(first[depth], first[keypoints])


def test_building_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    build_network("pi", ALL, 64, seed=5)
    assert torch.equal(before, torch.get_rng_state())


def test_merging_split_states_restores_the_network() -> None:
    network = build_network("pi", ALL, 64, seed=1).eval()
    state = export_state(network)
    groups = [split_state(state, tasks) for tasks in (ALL[:2], ALL[2:])]
    other = build_network("pi", ALL, 64, seed=2).eval()
    load_state(other, merge_states(groups[0], *groups))
    rgb = torch.rand(1, 3, 64, 64)
    for name, value in network(rgb).items():
        assert torch.equal(value, other(rgb)[name])


def test_state_travels_as_plain_float32_without_counters() -> None:
    network = build_network("pi", ("normal",), 64, seed=0)
    state = export_state(network)
    assert all(value.dtype == np.float32 and value.flags.c_contiguous for value in state.values())
    assert all(name.startswith(("encoder.", "heads.normal.")) for name in state)
    assert not [name for name in state if name.endswith("num_batches_tracked")]
    assert [name for name in state if name.endswith("running_var")]
    name = next(iter(state))
    state[name] += 1
    assert not np.array_equal(export_state(network)[name], state[name])


def test_load_state_names_every_fault_and_changes_nothing() -> None:
    network = build_network("pi", ("normal",), 64, seed=0)
    before = export_state(network)
    broken = {name: value + 1 for name, value in before.items()}
    del broken["encoder.fused.1.0.weight"]
    broken["heads.depth_zbuffer.x"] = np.zeros(3, np.float32)
    broken["heads.normal.predict.bias"] = np.full(15, np.nan, np.float32)
    with pytest.raises(StateError) as caught:
        load_state(network, broken)
    text = str(caught.value)
    named = ("encoder.fused.1.0.weight", "heads.depth_zbuffer.x", "heads.normal.predict.bias")
    assert all(name in text for name in named)
    assert all(np.array_equal(before[name], value) for name, value in export_state(network).items())


def test_encoder_gradient_is_scaled_by_one_over_sqrt_n_and_heads_are_not() -> None:
    scaled = build_network("pi", ALL[1:], 64, seed=0)
    plain = MultiTaskNet(scaled.encoder, {}, scaled.stride)
    rgb = torch.rand(2, 3, 32, 32)

    def gradients(network: MultiTaskNet) -> dict[str, torch.Tensor]:
        scaled.zero_grad()
        features = network.represent(rgb)
        sum(value.sum() for value in scaled.read(features, 32, 32).values()).backward()  # type: ignore[union-attr]
        return {name: value.grad.clone() for name, value in scaled.named_parameters() if value.grad is not None}

    with_hook, without = gradients(scaled), gradients(plain)
    for name, gradient in with_hook.items():
        factor = 1 / math.sqrt(4) if name.startswith("encoder.") else 1.0
        torch.testing.assert_close(gradient, without[name] * factor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("task", ["depth_zbuffer", "normal", "keypoints2d"])
def test_an_untrained_head_draws_no_checkerboard(task: str) -> None:
    network = build_network("pi", (task,), 64, seed=0)
    even = torch.ones(1, 32, 16, 16)
    middle = network.heads[task].eval()(even)[..., 8:-8, 8:-8]
    torch.testing.assert_close(middle, middle[..., :1, :1].expand_as(middle))


def test_a_head_learns_what_is_finer_than_the_representation() -> None:
    head = build_network("pi", ("keypoints2d",), 64, seed=0).heads["keypoints2d"].eval()
    even = torch.ones(1, 32, 16, 16)
    finer = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(16, 16)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        (head(even) - finer).square().mean().backward()
        optimizer.step()
    with torch.no_grad():
        assert float((head(even) - finer).square()[..., 4:-4, 4:-4].mean()) < 0.05


def test_a_further_network_takes_the_same_road() -> None:
    tiny = NetworkParts(lambda: nn.Conv2d(3, 4, 1), lambda channels: nn.Conv2d(4, channels, 1), stride=1)
    network = build_network("tiny", ("normal",), 8, seed=0, networks={**NETWORKS, "tiny": tiny})
    assert network(torch.rand(1, 3, 8, 8))["normal"].shape == (1, 3, 8, 8)


def test_unknown_names_are_refused_with_what_is_known() -> None:
    with pytest.raises(UnknownNetworkError, match="known are pi"):
        build_network("resnet", ("normal",), 64, seed=0)
    with pytest.raises(ValueError, match="unknown tasks"):
        build_network("pi", ("colour",), 64, seed=0)
    with pytest.raises(ValueError, match="at least one task"):
        build_network("pi", (), 64, seed=0)


def test_size_on_the_wire_stays_small() -> None:
    assert sum(value.size for value in export_state(build_network("pi", ALL, 64, seed=0)).values()) <= 500_000
