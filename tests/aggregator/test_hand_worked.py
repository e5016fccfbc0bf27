"""The method's numbers against cases worked by hand, and exact choices against trying everything."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import msgspec
import numpy as np
import pytest
import torch
from lab import SPEC

from aggregator.affinity import AffinityTotal
from aggregator.averaging import RunningAverage
from aggregator.coordinator.seeds import learning_rate
from aggregator.covering import best_cover, cover_score, mean_scores
from aggregator.schemes import find_scheme
from aggregator.schemes.base import Results, Stage
from aggregator.splitting import partition_score, ranked, split_tasks, task_scores
from models.tasks import letters
from models.wire.job import TrainSettings

S, D, N = TASKS = SPEC.tasks
#: affinity[source, target]: d helps n most and s some, s helps d and harms n, n harms s a little.
AFFINITY = ((0.0, 0.4, -0.2), (0.2, 0.0, 0.6), (-0.1, 0.1, 0.0))
MATRIX = np.asarray(AFFINITY)


def test_the_published_split_score() -> None:
    # s alone: what it gives, 0.4 and -0.2, and what it receives, 0.2 and -0.1, over 4. In dn d receives 0.1, n 0.6.
    assert task_scores(MATRIX, ((0,), (1, 2))) == pytest.approx([0.075, 0.1, 0.6])
    # All in one: s (0.2 - 0.1) / 2, d (0.4 + 0.1) / 2, n (-0.2 + 0.6) / 2.
    assert task_scores(MATRIX, ((0, 1, 2),)) == pytest.approx([0.05, 0.25, 0.2])
    # sd | n: 0.2 and 0.4, and n alone (-0.2 + 0.6 - 0.1 + 0.1) / 4. sn | d: -0.1, -0.2 and (0.4 + 0.1 + 0.2 + 0.6) / 4.
    expected = {((S,), (D, N)): 0.775 / 3, ((S, D), (N,)): 0.7 / 3, ((S, D, N),): 0.5 / 3, ((S, N), (D,)): 0.025 / 3}
    assert {each.splits: each.score for each in ranked(TASKS, AFFINITY, 2, 10)} == pytest.approx(expected)
    assert split_tasks(TASKS, AFFINITY, 2).splits == ((S,), (D, N))
    # Each for itself: 0.075, 0.325 and 0.1; less than s | dn.
    assert partition_score(MATRIX, ((0,), (1,), (2,))) == pytest.approx(0.5 / 3)
    assert split_tasks(TASKS, AFFINITY, 3).splits == ((S,), (D, N))


def test_the_polynomial_schedule_and_its_restart() -> None:
    spec = msgspec.structs.replace(SPEC, rounds=100, train=TrainSettings(lr=0.1))
    # 0.5 ** 0.9 = exp(-0.9 * 0.693147) = exp(-0.623832) = 0.535887; 0.3 ** 0.9 = exp(-1.083575) = 0.338383.
    assert [learning_rate(spec, each) for each in (0, 50, 70)] == pytest.approx([0.1, 0.0535887, 0.0338383], rel=1e-5)
    # Anew from round 30 over 70 rounds: round 65 is half of them on, round 30 and round 0 of the whole are alike.
    assert [learning_rate(spec, each, 30) for each in (30, 65)] == pytest.approx([0.1, 0.0535887], rel=1e-5)
    assert learning_rate(spec, 99, 30) == pytest.approx(0.1 * (1 / 70) ** 0.9)
    assert learning_rate(msgspec.structs.replace(spec, lr_power=1.0), 75) == pytest.approx(0.025)


def batch_norm_after(batch: list[float]) -> dict[str, np.ndarray]:
    layer = torch.nn.BatchNorm1d(1)
    layer.train()(torch.tensor(batch, dtype=torch.float64).float()[:, None])
    return {
        f"encoder.bn.{name}": value.numpy() for name, value in layer.named_buffers() if value.dtype.is_floating_point
    }


def test_fedavg_averages_batchnorms_buffers_like_weights() -> None:
    base = {
        "encoder.bn.running_mean": np.asarray([0.0], np.float32),
        "encoder.bn.running_var": np.asarray([1.0], np.float32),
    }
    # Mean 2, variance 4 (2 samples, unbiased), momentum 0.1: to 0.2 and 1.3. Mean -1, variance 2: to -0.1 and 1.1.
    clients = [(batch_norm_after([2 - 2**0.5, 2 + 2**0.5]), 30), (batch_norm_after([-2.0, 0.0]), 10)]
    running = RunningAverage(base)
    for state, samples in clients:
        running.add({name: state[name] - base[name] for name in base}, samples)
    result = running.result()
    # (30 * 0.2 - 10 * 0.1) / 40 and 1 + (30 * 0.3 + 10 * 0.1) / 40.
    assert result["encoder.bn.running_mean"] == pytest.approx([0.125])
    assert result["encoder.bn.running_var"] == pytest.approx([1.25])


def decided(scheme: str, results: Results, groups: int) -> Stage:
    spec = msgspec.structs.replace(SPEC, scheme=scheme, max_splits=groups)
    stage = find_scheme(scheme).following(spec, (), 0, results)
    assert stage is not None
    assert stage.decision is not None
    return stage


def test_tag_chooses_overlapping_groups() -> None:
    measured = Results(AffinityTotal(TASKS, AFFINITY, batches=1, rounds=(0,)))
    # s is best in sd (0.2), d too (0.4), n in dn (0.6): two groups serve all at their best.
    two = decided("tag", measured, 2)
    assert {letters(plan.tasks): letters(plan.serves or ()) for plan in two.splits} == {"sd": "sd", "dn": "n"}
    assert two.decision is not None
    assert two.decision.score == pytest.approx(1.2 / 3)
    one = decided("tag", measured, 1)
    assert [plan.split for plan in one.splits] == ["sdn"]
    assert one.decision is not None
    assert one.decision.score == pytest.approx(0.5 / 3)


def test_hoa_foresees_a_group_from_its_pairs() -> None:
    losses = {
        "s": {S: 1.0}, "d": {D: 1.0}, "n": {N: 1.0},
        "sd": {S: 0.8, D: 0.9}, "sn": {S: 1.2, N: 0.7}, "dn": {D: 1.1, N: 0.9},
    }  # fmt: skip
    # sd for s (0.8) and d (0.9), sn for n alone (0.7): 2.4, and both are trained already.
    two = decided("hoa", Results(None, losses), 2)
    assert (two.splits, two.also_serve) == ((), {"sd": (S, D), "sn": (N,)})
    assert two.decision is not None
    assert two.decision.score == pytest.approx(-2.4 / 3)
    # sdn: s (0.8 + 1.2) / 2, d (0.9 + 1.1) / 2, n (0.7 + 0.9) / 2: 2.8.
    one = decided("hoa", Results(None, losses), 1)
    assert ([plan.split for plan in one.splits], one.also_serve) == (["sdn"], {})
    assert one.decision is not None
    assert one.decision.score == pytest.approx(-2.8 / 3)


def covers(count: int, most: int) -> Iterator[tuple[tuple[int, ...], ...]]:
    """Every set of at most `most` groups in which each task is found."""
    groups = [group for size in range(1, count + 1) for group in combinations(range(count), size)]
    for number in range(1, most + 1):
        yield from (each for each in combinations(groups, number) if len(set().union(*each)) == count)


def slow_score(pairs: np.ndarray, alone: np.ndarray, task: int, group: tuple[int, ...]) -> float:
    others = [pairs[other, task] for other in group if other != task]
    return sum(others) / len(others) if others else float(alone[task])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("count", "most"), [(2, 2), (3, 2), (3, 3), (4, 2), (4, 3), (5, 2)])
def test_no_cover_is_better_than_the_chosen(count: int, most: int, seed: int) -> None:
    lot = np.random.default_rng((seed, count, most))
    pairs, alone = lot.normal(size=(count, count)), lot.normal(size=count)
    best = max(
        sum(max(slow_score(pairs, alone, task, group) for group in each if task in group) for task in range(count))
        for each in covers(count, most)
    )
    scores = mean_scores(pairs, alone)
    chosen = best_cover(scores, most)
    assert cover_score(scores, chosen) * count == pytest.approx(best)
    assert sorted(task for _, served in chosen for task in served) == list(range(count))
    assert len({group for group, _ in chosen}) == len(chosen) <= most
    for group, served in chosen:
        assert set(served) <= set(group)
        for task in served:
            here = slow_score(pairs, alone, task, group)
            assert here == pytest.approx(max(slow_score(pairs, alone, task, g) for g, _ in chosen if task in g))


def test_ties_go_to_few_and_small_groups() -> None:
    flat = mean_scores(np.ones((3, 3)), np.ones(3))
    assert best_cover(flat, 3) == [((0, 1, 2), (0, 1, 2))]
    # Nobody is better off in company: each alone, though every larger group serves task 0 as well.
    alone = mean_scores(np.asarray([[0.0, -1, -1], [2, 0, -1], [2, -1, 0]]), np.asarray([2.0, 0.0, 0.0]))
    assert best_cover(alone, 3) == [((0,), (0,)), ((1,), (1,)), ((2,), (2,))]


def test_nine_tasks_are_chosen_exactly() -> None:
    lot = np.random.default_rng(9)
    scores = mean_scores(lot.normal(size=(9, 9)), np.zeros(9))
    totals = [cover_score(scores, best_cover(scores, most)) for most in (1, 2, 3, 4, 9)]
    assert totals == sorted(totals)
    # As many groups as tasks: each in the best there is for it.
    assert totals[-1] == pytest.approx(
        np.mean([max(scores[mask, task] for mask in range(512) if mask >> task & 1) for task in range(9)])
    )
