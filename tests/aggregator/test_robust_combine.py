"""Whole rounds by the rules that a job asks for, and what they leave on disk and in memory."""

from __future__ import annotations

import errno
import gc
import os
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from aggregator.averaging import RunningAverage, ZeroWeightError
from aggregator.robust import kept, spool
from aggregator.robust.combine import PartWise, begin_combining
from aggregator.robust.spool import Spool
from models.state import l2_norm, parts_of
from models.wire.job import Defence, Privacy, Rule

SHAPES = {
    "encoder.w": (300, 7),
    "encoder.bn.running_var": (11,),
    "heads.a.w": (5,),
    "heads.b.w": (),
    "heads.b.e": (0, 3),
}
State = dict[str, np.ndarray]


def random_state(seed: int, scale: float = 1.0) -> State:
    generator = np.random.default_rng(seed)
    state = {name: np.asarray(generator.standard_normal(shape) * scale, np.float32) for name, shape in SHAPES.items()}
    return {name: 1 + abs(array) if name.endswith("running_var") else array for name, array in state.items()}


BASE = random_state(0)
DELTAS = [random_state(index + 1, 0.1) for index in range(7)]


def combine(defence: Defence, deltas: list[State], folder: Path | None = None, workers: int = 1) -> State:
    combining = begin_combining(BASE, defence, Privacy(), folder=folder, workers=workers)
    for number, delta in enumerate(deltas):
        combining.add(delta, 1.0 + number)
    return combining.result()


def part(state: State, name: str) -> np.ndarray:
    return np.concatenate([state[each].reshape(-1) for each in parts_of(SHAPES)[name]]).astype(np.float64)


def slow(rule: Rule, name: str, deltas: list[State], max_norm: float = 0.0) -> np.ndarray:
    """A part of the new model, the obvious way."""
    rows = np.stack([part(delta, name) for delta in deltas])
    weights, norms = np.arange(1.0, len(rows) + 1), np.linalg.norm(rows, axis=1)
    lying = len(rows) // 5
    if rule == "median":
        change = np.median(rows, axis=0)
    elif rule == "trimmed-mean":
        change = np.sort(rows, axis=0)[lying : len(rows) - lying].mean(axis=0)
    elif rule in ("krum", "multi-krum"):
        scores = []
        for row in rows:
            squares = sorted(((row - other) ** 2).sum() for other in rows)
            scores.append(sum(squares[1 : 1 + len(rows) - lying - 2]))
        change = rows[np.argsort(scores)[: 1 if rule == "krum" else len(rows) - lying]].mean(axis=0)
    else:
        limit = max_norm or np.median(norms)
        scales = np.minimum(1, limit / norms) if rule == "norm-bounded" else np.ones(len(rows))
        change = (rows * (weights * scales)[:, None]).sum(axis=0) / weights.sum()
    return part(BASE, name) + change


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("encoder", ["mean", "median", "trimmed-mean", "krum", "multi-krum", "norm-bounded"])
@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_each_part_has_what_its_rule_makes(
    encoder: Rule, max_norm: float, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "_MOST_WIDTH", 64)  # many blocks, of which the last is shorter
    for heads in ("mean", "median"):
        result = combine(Defence(encoder, heads, max_norm=max_norm), DELTAS, tmp_path, workers)
        assert list(result) == list(BASE)
        assert [(a.shape, a.dtype) for a in result.values()] == [(a.shape, np.float32) for a in BASE.values()]
        for name, rule in (("", encoder), ("a", heads), ("b", heads)):
            assert np.allclose(part(result, name), slow(rule, name, DELTAS, max_norm), rtol=1e-5, atol=1e-6)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "multi-krum", "norm-bounded"])
def test_the_bits_depend_neither_on_blocks_nor_on_threads(rule: Rule, monkeypatch: pytest.MonkeyPatch) -> None:
    def bits(width: int, workers: int) -> list[bytes]:
        monkeypatch.setattr(kept, "_MOST_WIDTH", width)
        return [array.tobytes() for array in combine(Defence(rule, rule), DELTAS, workers=workers).values()]

    assert bits(8192, 1) == bits(64, 1) == bits(50, 3)


def test_the_default_is_the_running_sum_that_keeps_nothing() -> None:
    assert type(begin_combining(BASE, Defence(), Privacy())) is RunningAverage
    mixed = combine(Defence(heads="median"), DELTAS)
    plain = combine(Defence(), DELTAS)
    for name in ("encoder.w", "encoder.bn.running_var"):
        assert mixed[name].tobytes() == plain[name].tobytes()


@pytest.mark.parametrize("rule", ["median", "trimmed-mean", "krum", "multi-krum", "norm-bounded"])
def test_one_liar_among_five_moves_a_round_no_further_than_the_honest_differ(rule: Rule) -> None:
    honest = [random_state(index + 1, 0.1) for index in range(4)]
    lie = {name: np.full(shape, 1e6, np.float32) for name, shape in SHAPES.items()}
    with_lie, mean = combine(Defence(rule, rule), [*honest, lie]), combine(Defence(), honest)
    apart = l2_norm(with_lie[name] - mean[name] for name in SHAPES)
    assert apart < 2 * max(l2_norm(delta.values()) for delta in honest)
    ruined = combine(Defence(), [*honest, lie])
    assert l2_norm(ruined[name] - mean[name] for name in SHAPES) > 1e6


def test_samples_that_are_claimed_do_not_count_where_clients_are_alike() -> None:
    deltas = DELTAS[:5]
    for rule, alike in (("median", True), ("krum", True), ("multi-krum", True), ("mean", False)):
        results = []
        for claimed in (1.0, 1e6):
            combining = begin_combining(BASE, Defence(rule, rule), Privacy())  # type: ignore[arg-type]
            for number, delta in enumerate(deltas):
                combining.add(delta, claimed if number == 2 else 1.0)
            results.append(combining.result()["encoder.w"].tobytes())
        assert (results[0] == results[1]) == alike


def test_a_variance_is_held_at_zero_or_above() -> None:
    down = {name: -2 * abs(array) - 2 for name, array in BASE.items()}
    assert (combine(Defence("median", "median"), [down] * 3)["encoder.bn.running_var"] == 0).all()


def test_an_update_that_is_not_like_the_base_is_not_kept() -> None:
    combining = begin_combining(BASE, Defence("median"), Privacy())
    with pytest.raises(ValueError, match=r"heads.a.w is missing from the update; x is not in the model"):
        combining.add({**{n: a for n, a in DELTAS[0].items() if n != "heads.a.w"}, "x": BASE["heads.a.w"]}, 1.0)
    with pytest.raises(ZeroWeightError, match="no samples"):
        combining.result()


def test_a_disk_that_was_full_for_a_moment_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defence = Defence("median", "trimmed-mean")
    expected, write, left = combine(defence, DELTAS), os.pwrite, [5]

    def full(file: int, data: memoryview, offset: int) -> int:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(file, data[:1000], offset)  # and a disk that is nearly full takes less than was asked

    monkeypatch.setattr(spool.os, "pwrite", full)
    combining, failed = begin_combining(BASE, defence, Privacy(), folder=tmp_path), 0
    for number, delta in enumerate(DELTAS):
        while True:
            try:
                combining.add(delta, 1.0 + number)
                break
            except OSError:
                failed += 1
    result = combining.result()
    assert failed == 1
    assert all(result[name].tobytes() == array.tobytes() for name, array in expected.items())


def test_what_was_kept_goes_with_its_round(tmp_path: Path) -> None:
    gc.collect()  # what other tests have left
    before = len(os.listdir("/proc/self/fd"))
    combining = begin_combining(BASE, Defence("median", "median"), Privacy(), folder=tmp_path)
    combining.add(DELTAS[0], 1.0)
    assert len(os.listdir("/proc/self/fd")) == before + 3, "the encoder and two heads"
    assert not list(tmp_path.iterdir()), "a file without a name cannot be left behind"
    del combining
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_row_that_is_cut_short_is_an_error(tmp_path: Path) -> None:
    rows = Spool(4, tmp_path)
    rows.write(0, [np.arange(4, dtype=np.float32)])
    with pytest.raises(ValueError, match="a row of 3 numbers, expected 4"):
        rows.write(1, [np.zeros(3, np.float32)])
    with pytest.raises(OSError, match="not whole"):
        rows.read([0, 1], 2, np.empty((2, 2), np.float32))


def test_memory_does_not_grow_with_the_number_of_clients() -> None:
    base = {"encoder.w": np.zeros(2**18, np.float32)}

    def peak(clients: int) -> int:
        tracemalloc.start()
        try:
            combining = PartWise(base, Defence("trimmed-mean", "median"), None)
            for number in range(clients):
                combining.add({"encoder.w": np.full(2**18, number, np.float32)}, 1.0)
            combining.result()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    few, many = peak(32), peak(128)
    assert many < 1.05 * few
    assert many < 2 * 4 * 2**18 + 1.25 * kept.BLOCK_BYTES, "an update, the result, and a block"
