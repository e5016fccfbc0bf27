"""Ranking of partitions and agreement of splits: a case of three tasks by hand, and what is left out."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import experiment_runs as made
import msgspec
import pytest

from aggregator.record import AffinityRecord, SplitRecord
from aggregator.splitting import split_tasks
from tools.experiment.report.agreement import Window, agreement, mean_of, probed_row, probes, windows
from tools.experiment.report.partitions import (
    Ranking,
    choice,
    group_losses,
    ranking,
    score_correlation,
    seed_noise,
    standing,
)
from tools.experiment.report.rows import Bench, benches
from tools.experiment.run_record import Run

THREE = made.TASKS[:3]
EVERY = made.Plan("every-group", "every-group", 0.0, groups=made.plans()[5].groups, merged=True)


def by_hand(seed: int, losses: dict[str, float], matrix: Any) -> Run:
    """An every-group run of three tasks; `losses` by group, laid on the group's first task."""
    whole = made.run(EVERY, seed)
    assert whole.record is not None
    by_letter = dict(zip("sdn", THREE, strict=True))
    splits = []
    for name, loss in losses.items():
        tasks = tuple(by_letter[letter] for letter in name)
        shared = dict.fromkeys(tasks, 0.0) | {tasks[0]: loss}
        kept = msgspec.structs.replace(whole.record.splits[1].rounds[-1], test_losses=shared)
        splits.append(SplitRecord(name, tasks, "merged", 9, 29, False, "", (kept,)))
    affinity = AffinityRecord(THREE, matrix, 10, 9)
    record = msgspec.structs.replace(whole.record, splits=(whole.record.splits[0], *splits), affinity=affinity)
    spec = msgspec.structs.replace(whole.spec, tasks=THREE)
    return msgspec.structs.replace(whole, record=record, spec=spec)


#: sd|n scores best: s and d help each other by 3 and 1, n is hurt by both.
MATRIX = ((9.0, 3.0, -1.0), (1.0, 9.0, -1.0), (-1.0, -1.0, 9.0))


def three_partitions() -> Ranking:
    """s|dn 3.0, sd|n 2.0, sn|d 4.0 in seed 0; 3.5, 2.5, 2.0 in seed 1."""
    first = by_hand(0, {"s": 1.0, "d": 1.0, "n": 0.5, "sd": 1.5, "sn": 3.0, "dn": 2.0}, MATRIX)
    second = by_hand(1, {"s": 1.5, "d": 0.5, "n": 0.5, "sd": 2.0, "sn": 1.5, "dn": 2.0}, MATRIX)
    found = ranking(benches([first, second])[0])
    assert found is not None
    return found


def test_a_partition_is_worth_the_sum_of_its_groups() -> None:
    found = three_partitions()
    names = {"|".join("".join(task[0] for task in group) for group in groups) for groups in found.partitions}
    assert names == {"s|dn", "sd|n", "sn|d"}
    assert [found.mean(at) for at in range(3)] == [2.25, 3.0, 3.25]
    assert found.losses == {0: (2.0, 4.0, 3.0), 1: (2.5, 2.0, 3.5)}


def test_the_chosen_ones_standing_by_hand() -> None:
    found = three_partitions()
    first, second = standing(found, 2, 0), standing(found, 2, 1)
    assert (first.percentile, first.regret, first.share) == (1.0, 0.0, 0.0)
    # Seed 1 would fear s|dn (3.5), which seed 0 has at 3.0: one above the chosen one's 2.0.
    assert first.margin == 1.0
    # In seed 1 the chosen 2.5 beats one of two others and is 0.5 above the best, a third of 3.5 - 2.0.
    assert (second.percentile, second.regret, second.share) == (0.5, 0.5, pytest.approx(1 / 3))
    assert second.margin == -0.5


def test_seed_noise_is_what_seeds_and_partitions_leave() -> None:
    # The residuals of a two-way table, the slow way; (2 - 1) * (3 - 1) degrees of freedom.
    table = [[2.0, 4.0, 3.0], [2.5, 2.0, 3.5]]
    rows = [sum(row) / 3 for row in table]
    columns = [sum(row[at] for row in table) / 2 for at in range(3)]
    grand = sum(rows) / 2
    left = [(table[i][j] - rows[i] - columns[j] + grand) ** 2 for i in range(2) for j in range(3)]
    assert seed_noise(three_partitions()) == pytest.approx(math.sqrt(sum(left) / 2))


def test_scores_are_those_of_mas_and_correlate_by_rank() -> None:
    found = three_partitions()
    # sd|n: s gets 1, d gets 3, n alone the mean of -1, -1, -1, -1: (1 + 3 - 1) / 3.
    assert found.scores[0][0] == pytest.approx(1.0)
    by_seed, over = score_correlation(found)
    assert set(by_seed) == {0, 1}
    assert over is not None
    assert over.mean == pytest.approx(sum(by_seed.values()) / 2)


def test_five_tasks_have_fifty_partitions() -> None:
    found = ranking(benches(made.grid(rows=[EVERY]))[0])
    assert found is not None
    assert [len(found.of_size(size)) for size in found.sizes] == [15, 25, 10]
    assert len(found.of_size(None)) == 50
    means = [found.mean(at) for at in range(50)]
    assert means == sorted(means)


def test_a_seed_without_all_groups_is_left_out_and_named() -> None:
    whole, lame = made.run(EVERY, 0), made.run(EVERY, 1)
    assert lame.record is not None
    fewer = msgspec.structs.replace(lame.record, splits=lame.record.splits[:-1])
    found = ranking(benches([whole, msgspec.structs.replace(lame, record=fewer)])[0])
    assert found is not None
    assert found.seeds == (0,)
    assert found.lacking == ("seed 1 lacks groups of [4] tasks",)
    assert seed_noise(found) is None
    assert standing(found, 2, 0).margin is None


def test_an_unevaluated_group_has_no_loss() -> None:
    run = made.run(EVERY, 0)
    assert run.record is not None
    last = run.record.splits[-1]
    blind = msgspec.structs.replace(last, rounds=(msgspec.structs.replace(last.rounds[-1], test_losses={}),))
    blinded = msgspec.structs.replace(run.record, splits=(*run.record.splits[:-1], blind))
    found = group_losses(msgspec.structs.replace(run, record=blinded))
    assert frozenset(last.tasks) not in found
    assert len(found) == 29


def test_there_is_no_ranking_without_every_group() -> None:
    assert ranking(benches(made.grid(rows=made.plans()[:2]))[0]) is None


def test_thirds_of_the_probed_rounds() -> None:
    assert windows([0, 1, 2, 3, 4, 5, 6]) == (
        Window("early", 0, 1), Window("middle", 2, 4), Window("late", 5, 6), Window("all", 0, 6),
    )  # fmt: skip
    assert [window.name for window in windows([3, 1])] == ["early", "late", "all"]


def mas_bench() -> Bench:
    return benches(made.grid(rows=[plan for plan in made.plans() if plan.row == "mas-2"]))[0]


def test_every_clients_split_is_held_against_the_pooled_one() -> None:
    row = probed_row(mas_bench())
    assert row is not None
    found = agreement(row.done[0], 2)
    assert found is not None
    assert found.pooled == choice(row.done[0], made.TASKS, 2)
    assert len(found.by_client) == len(made.CLIENTS)
    assert found.cells["", "all"] is not None
    assert found.cells["", "all"].same
    assert all(entry.same == (entry.adjusted == 1.0) for entry in found.by_client)


def test_clients_whose_names_begin_alike_are_kept_apart() -> None:
    names = ("agent-1", "agent-10", "agent-11", "agent-12")
    run = made.run(next(plan for plan in made.plans() if plan.row == "mas-2"), 0, clients=names)
    found = agreement(run, 2)
    assert found is not None
    assert found.clients == names
    alone = mean_of([probe for probe in probes(run) if probe.agent == "agent-1"])
    every = mean_of(probes(run))
    assert alone != every


def test_batches_weigh_the_mean() -> None:
    first, second = probes(mas_bench().rows[0].done[0])[:2]
    heavy = [first, replace(second, batches=18, sums=tuple(tuple(v * 3 for v in row) for row in second.sums))]
    found = mean_of(heavy)
    assert found is not None
    assert found[0][1] == pytest.approx((first.sums[0][1] + 3 * second.sums[0][1]) / 24)
    assert mean_of([]) is None


def friendly(affinity: str) -> Run:
    """A run in which every task helps every other, the first source a hundred times as much as the rest."""
    run = made.run(next(plan for plan in made.plans() if plan.row == "mas-2"), 0)
    assert run.record is not None
    count = range(len(made.TASKS))
    sums = tuple(tuple((100.0 if i == 0 else 1.0) * (1.0 if i == j else 0.5) for j in count) for i in count)
    merged = run.record.splits[0]
    rounds = tuple(
        msgspec.structs.replace(r, affinities=tuple(msgspec.structs.replace(a, sums=sums) for a in r.affinities))
        for r in merged.rounds
    )
    splits = (msgspec.structs.replace(merged, rounds=rounds), *run.record.splits[1:])
    spec = msgspec.structs.replace(run.spec, options={"affinity": affinity})
    return msgspec.structs.replace(run, spec=spec, record=msgspec.structs.replace(run.record, splits=splits))


def test_agreement_is_asked_of_two_groups_at_least_where_one_would_score_best() -> None:
    found = agreement(friendly("raw"), 3)
    assert found is not None
    assert len(found.pooled) == found.groups == 3
    least = agreement(friendly("raw"), 1)
    assert least is not None
    assert len(least.pooled) == least.groups == 2


def test_agreement_splits_by_the_affinity_that_the_run_splits_by() -> None:
    raw, own = agreement(friendly("raw"), 2), agreement(friendly("self"), 2)
    assert raw is not None
    assert own is not None
    assert raw.pooled != own.pooled


def test_equal_scores_are_chosen_among_without_a_look_at_losses() -> None:
    """All score 0: MAS takes s|dn, the first by its rule, whichever has the lowest loss."""
    flat = ((0.0,) * 3,) * 3
    for best in ("sd", "sn", "dn"):
        losses = {"s": 1.0, "d": 1.0, "n": 1.0, "sd": 2.0, "sn": 2.0, "dn": 2.0} | {best: 1.0}
        found = ranking(benches([by_hand(0, losses, flat)])[0])
        assert found is not None
        chosen = found.partitions[standing(found, 2, 0).chosen]
        assert chosen == split_tasks(THREE, flat, 2, exactly=True).splits


def test_a_run_without_probes_has_nothing_to_compare() -> None:
    assert agreement(made.run(made.plans()[0], 0), 2) is None
