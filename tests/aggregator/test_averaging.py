"""Streaming FedAvg against a plain mean."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest

import aggregator.averaging as averaging
from aggregator.averaging import RunningAverage, ZeroWeightError
from models.wire.tensors import decode_tensors, encode_tensors

SHAPES = {"encoder.w": (300, 7), "encoder.bn.running_var": (11,), "heads.normal.b": (), "heads.empty": (0, 3)}


def random_state(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    state = {name: np.asarray(generator.standard_normal(shape) * scale, np.float32) for name, shape in SHAPES.items()}
    return {name: 1 + abs(array) if name.endswith("running_var") else array for name, array in state.items()}


def plain(
    base: dict[str, np.ndarray], deltas: list[dict[str, np.ndarray]], weights: list[int]
) -> dict[str, np.ndarray]:
    return {
        name: array + np.average([delta[name].astype(np.float64) for delta in deltas], axis=0, weights=weights)
        for name, array in base.items()
    }


@pytest.mark.parametrize("updates", [1, 3, 4, 9])
@pytest.mark.parametrize("workers", [1, 3])
def test_it_is_the_weighted_mean(updates: int, workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(averaging, "BLOCK", 64)
    base, weights = random_state(0), [3 + 17 * index for index in range(updates)]
    deltas = [random_state(index + 1, 0.01) for index in range(updates)]
    running = RunningAverage(base, workers)
    for delta, weight in zip(deltas, weights, strict=True):
        running.add(delta, weight)
    result, expected = running.result(), plain(base, deltas, weights)
    assert list(result) == list(base)
    for name, array in result.items():
        assert (array.dtype, array.shape) == (np.float32, base[name].shape)
        np.testing.assert_allclose(array, expected[name], rtol=2e-6, atol=2e-7)
    assert (running.weight, running.updates) == (sum(weights), updates)


def test_the_result_ends_the_sum() -> None:
    running = RunningAverage(random_state(0))
    running.add(random_state(1), 1)
    running.result()
    for again in (running.result, lambda: running.add(random_state(1), 1)):
        with pytest.raises(RuntimeError, match="taken already"):
            again()


def test_by_hand() -> None:
    running = RunningAverage({"w": np.asarray([1.0, 2.0], np.float32)})
    running.add({"w": np.asarray([4.0, 0.0], np.float32)}, 1)
    running.add({"w": np.asarray([0.0, -8.0], np.float32)}, 3)
    assert running.result()["w"].tolist() == [2.0, -4.0]


def test_many_updates_stay_close_to_the_exact_mean() -> None:
    base = {"w": np.ones(1000, np.float32)}
    generator = np.random.default_rng(1)
    running, exact, total = RunningAverage(base), np.zeros(1000), 0
    for _ in range(1000):
        delta, weight = generator.standard_normal(1000).astype(np.float32), int(generator.integers(1, 5000))
        running.add({"w": delta}, weight)
        exact += delta.astype(np.float64) * weight
        total += weight
    np.testing.assert_allclose(running.result()["w"], 1 + exact / total, atol=5e-7)


def test_the_bits_depend_on_nothing_but_the_updates_and_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    base, deltas = random_state(0), [random_state(index + 1) for index in range(7)]

    def run(block: int, waiting: int, workers: int) -> dict[str, bytes]:
        monkeypatch.setattr(averaging, "BLOCK", block)
        monkeypatch.setattr(averaging, "WAITING_UPDATES", waiting)
        running = RunningAverage(base, workers)
        for index, delta in enumerate(deltas):
            running.add(delta, 7 + index)
        return {name: array.tobytes() for name, array in running.result().items()}

    assert run(64, 1, 1) == run(2**18, 4, 1) == run(100, 3, 4)


def test_a_variance_that_half_precision_takes_below_zero_is_held_at_zero() -> None:
    bn, other = "encoder.bn.running_var", "encoder.bn.running_mean"
    base = {name: np.array([0.4999, 0.5], np.float32) for name in (bn, other)}
    trained = {name: np.array([1e-5, 0.25], np.float32) for name in base}
    update = {name: trained[name] - base[name] for name in base}
    received = decode_tensors(encode_tensors(update, "fp16"))
    rounded = base[bn] + received[bn]
    assert rounded[0] < 0, "half precision has steps of 2**-12 just below a half"
    running = RunningAverage(base)
    running.add(received, 7)
    result = running.result()
    assert result[bn].tolist() == [0.0, 0.25]
    assert result[other].tolist() == rounded.tolist(), "what is no variance may be negative"


def test_neither_base_nor_updates_are_changed() -> None:
    base, delta = random_state(0), random_state(1)
    kept = [{name: array.copy() for name, array in state.items()} for state in (base, delta)]
    running = RunningAverage(base)
    running.add(delta, 5)
    running.result()["encoder.w"][:] = 0
    for state, before in zip((base, delta), kept, strict=True):
        assert all(np.array_equal(state[name], before[name]) for name in state)


def test_no_weight_is_an_error() -> None:
    running = RunningAverage(random_state(0))
    with pytest.raises(ZeroWeightError, match="0 updates"):
        running.result()
    running.add(random_state(1), 0)
    with pytest.raises(ZeroWeightError, match="1 updates"):
        running.result()


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_a_number_of_samples(weight: float) -> None:
    with pytest.raises(ValueError, match="not a number of samples"):
        RunningAverage(random_state(0)).add(random_state(1), weight)


def test_an_unlike_update_is_refused_with_every_fault_and_counts_for_nothing() -> None:
    running = RunningAverage(random_state(0))
    bad = random_state(1)
    bad["encoder.w"] = bad["encoder.w"].T
    bad["heads.normal.b"] = bad["heads.normal.b"].astype(np.float64)
    bad["more"] = bad.pop("encoder.bn.running_var")
    with pytest.raises(ValueError, match=r"running_var is missing.*more is not in.*float32.*7, 300.*float64") as caught:
        running.add(bad, 1)
    assert "expected float32[300, 7]" in str(caught.value)
    assert running.updates == 0


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    def peak(updates: int) -> int:
        tracemalloc.start()
        running = RunningAverage({"w": np.zeros(250_000, np.float32)})
        for _ in range(updates):
            running.add({"w": np.ones(250_000, np.float32)}, 1)
        running.result()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < 1.2 * peak(16)
