"""Faults of the research code released for MAS that an aggregator must not have: numbers 1, 3, 6, 8 and 9.

Each check is held against our code, and against a small twin that has the fault, which it must reject. Numbers 10 and
13 are in test_released_faults_{search,memory}.py, the others in tests/edge_agent/test_released_faults_*.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec
import numpy as np
import pytest
import torch
from lab import SPEC, TASKS, Answer, Lab

from aggregator.affinity import Matrix, add_affinity, empty_affinity, mean_affinity
from aggregator.coordinator import actions as act
from aggregator.coordinator import events as ev
from aggregator.coordinator import spec_faults
from aggregator.schemes import find_scheme, schemes
from edge_agent.trainer.meters import AffinityMeter
from models.wire import messages as msg
from models.wire.job import JobSpec

S, D, N = TASKS
Reports = Sequence[msg.AffinitySums]


def job(scheme: str = "mas", answers: Mapping[str, Answer] | None = None, **changes: object) -> Lab:
    """A whole job of one scheme with devices that answer as told."""
    options = {"given-split": {"groups": ["sn", "d"]}}.get(scheme, {})
    lab = Lab().fleet(3, testers=1)
    lab.answers = dict(answers or {})
    lab.submit(**{"scheme": scheme, "options": options, **changes}).run()
    assert lab.job().state == "deployed", lab.job().reason
    return lab


def measuring(sums: msg.AffinitySums) -> Answer:
    """A device that reports these sums wherever it is asked to probe."""

    def answer(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        event = lab.answer(action)
        if isinstance(event, ev.TrainReported) and event.report.affinity is not None:
            return ev.TrainReported(msgspec.structs.replace(event.report, affinity=sums))
        return event

    return answer


# --- 1: conflict is evidence -----------------------------------------------------------------------------------------

CONFLICT = (msg.AffinitySums(2, ((0.0, -3.0), (1.0, 0.0))), msg.AffinitySums(2, ((0.0, 1.0), (-2.0, 0.0))))


def check_conflict_is_kept(mean: Callable[[Reports], Matrix]) -> None:
    # (-3 + 1) / 4 and (1 - 2) / 4.
    np.testing.assert_allclose(mean(CONFLICT), [[0.0, -0.5], [-0.25, 0.0]])


def mean_on_the_server(reports: Reports) -> Matrix:
    total = empty_affinity(("a", "b"))
    for number, report in enumerate(reports):
        total = add_affinity(total, report, number)
    return mean_affinity(total)


def mean_on_a_device(reports: Reports) -> Matrix:
    meter = AffinityMeter(every=1)
    for report in reports:
        for _ in range(report.batches):
            meter.add(torch.tensor(report.sums, dtype=torch.float64) / report.batches)
    found = meter.result()
    assert found is not None
    return tuple(tuple(value / found.batches for value in row) for row in found.sums)


def mean_of_help_alone(reports: Reports) -> Matrix:
    sums = sum(np.maximum(report.sums, 0.0) for report in reports)
    return tuple(map(tuple, (sums / sum(report.batches for report in reports)).tolist()))


def test_fault_1_negative_affinities_are_kept_when_sums_are_added() -> None:
    check_conflict_is_kept(mean_on_the_server)
    check_conflict_is_kept(mean_on_a_device)
    with pytest.raises(AssertionError):
        check_conflict_is_kept(mean_of_help_alone)


# --- 3: one schedule for all -----------------------------------------------------------------------------------------


def rates(lab: Lab) -> dict[int, set[float]]:
    """The learning rates that orders of each round carried, whatever the split."""
    found: dict[int, set[float]] = {}
    for order in lab.orders("train"):
        found.setdefault(order.key.round, set()).add(order.settings.lr)
    return found


def check_one_cycle(found: Mapping[int, set[float]]) -> None:
    assert sorted(found) == list(range(6))
    for number, seen in found.items():
        assert list(seen) == pytest.approx([0.1 * (1 - number / 6) ** 0.9]), f"round {number}"


def test_fault_3_the_learning_rate_does_not_restart_at_a_split() -> None:
    for scheme in sorted(set(schemes()) - {"all-in-one-restart"}):
        check_one_cycle(rates(job(scheme, rounds=6, merge_rounds=2)))
    restarted = rates(job(rounds=6, merge_rounds=2, lr_restarts=True))
    with pytest.raises(AssertionError):
        check_one_cycle(restarted)
    # What two cycles are worth by themselves can be measured: the same two without a split, or with other splits.
    assert rates(job("all-in-one-restart", rounds=6, merge_rounds=2)) == restarted
    for scheme in ("random-split", "given-split"):
        assert rates(job(scheme, rounds=6, merge_rounds=2, lr_restarts=True)) == restarted


# --- 6: nothing is probed that nobody reads --------------------------------------------------------------------------


def check_every_probe_is_read(orders: Iterable[msg.TrainOrder], read: set[int]) -> None:
    """`read`: the rounds whose affinity decides, all of them of the merged split."""
    for order in orders:
        wanted = order.key.split == "merged" and order.key.round in read
        assert order.probe_every == (SPEC.probe_every if wanted else 0), order.key


def test_fault_6_no_probes_where_nobody_reads_the_affinity() -> None:
    long = {"rounds": 5, "merge_rounds": 3, "affinity_rounds": 2}
    deciding = {name: {0, 1} for name in ("mas", "split-from-scratch", "random-split", "every-group")}
    readers = {**deciding, "tag": set(range(5))}
    for scheme in sorted(schemes()):
        lab = job(scheme, **long)
        check_every_probe_is_read(lab.orders("train"), readers.get(scheme, set()))
        affinity = lab.record().affinity
        assert (affinity is not None and affinity.matrix != ()) == (scheme in readers)
    check_every_probe_is_read(job("random-split", options={"groups": 2}, **long).orders("train"), set())
    for scheme in ("mas", "all-in-one"):
        orders = job(scheme, **long).orders("train")
        always = [msgspec.structs.replace(order, probe_every=SPEC.probe_every) for order in orders]
        with pytest.raises(AssertionError):
            check_every_probe_is_read(always, readers.get(scheme, set()))


# --- 8: means are of what was measured -------------------------------------------------------------------------------

UNEVEN = (
    msg.AffinitySums(3, ((0.0, 3.0, 0.0), (-6.0, 0.0, 0.3), (0.0, 0.0, 0.0))),
    msg.AffinitySums(2, ((0.0, -0.5, 0.0), (1.0, 0.0, 0.2), (0.0, 0.0, 5.0))),
)


def check_batches_weigh(mean: Callable[[Reports], Matrix]) -> None:
    # Five batches in all: (3 - 0.5) / 5, (-6 + 1) / 5, (0.3 + 0.2) / 5 and 5 / 5.
    np.testing.assert_allclose(mean(UNEVEN), [[0.0, 0.5, 0.0], [-1.0, 0.0, 0.1], [0.0, 0.0, 1.0]])


def mean_of_a_job(reports: Reports) -> Matrix:
    answers = {f"a{index}": measuring(report) for index, report in enumerate(reports)}
    lab = Lab().fleet(len(reports))
    lab.answers = answers
    affinity = lab.submit(affinity_rounds=1).run().record().affinity
    assert affinity is not None
    return affinity.matrix


def mean_over_expected_batches(reports: Reports) -> Matrix:
    expected = 3  # what every client was thought to probe
    return tuple(map(tuple, (sum(np.asarray(each.sums) for each in reports) / (expected * len(reports))).tolist()))


def mean_over_clients(reports: Reports) -> Matrix:
    return tuple(map(tuple, np.mean([np.asarray(each.sums) / each.batches for each in reports], axis=0).tolist()))


def test_fault_8_means_divide_by_measured_batches_and_weigh_clients_by_theirs() -> None:
    check_batches_weigh(mean_of_a_job)
    for twin in (mean_over_expected_batches, mean_over_clients):
        with pytest.raises(AssertionError):
            check_batches_weigh(twin)
    meter = AffinityMeter(every=1)
    for number in (0.5, float("nan"), 0.1):
        meter.add(torch.full((2, 2), number, dtype=torch.float64))
    found = meter.result()
    assert found is not None
    assert found.batches == 2, "a batch that gave no number is not among those measured"


# --- 9: the split follows from the measurement -----------------------------------------------------------------------

Split = set[tuple[str, ...]]


def pair_and_one(first: int, second: int) -> Matrix:
    """Two of three tasks help each other, and both are harmed by the third."""
    pair = {first, second}
    return tuple(tuple(0.0 if i == j else 0.4 if {i, j} == pair else -0.4 for i in range(3)) for j in range(3))


def check_the_split_follows(split: Callable[[Matrix], Split]) -> None:
    assert split(pair_and_one(0, 1)) == {(S, D), (N,)}
    assert split(pair_and_one(1, 2)) == {(D, N), (S,)}


def split_of_a_job(matrix: Matrix) -> Split:
    """What was really trained after the merge, when every device measures this."""
    device = measuring(msg.AffinitySums(1, matrix))
    lab = job(answers=dict.fromkeys(("a0", "a1", "a2"), device))
    return {order.tasks for order in lab.orders("train") if order.key.split != "merged"}


def split_typed_in(matrix: Matrix) -> Split:
    return {"sdn": {(S, D), (N,)}}["sdn"]


def test_fault_9_the_split_follows_from_the_measured_affinity_and_cannot_be_typed_in() -> None:
    check_the_split_follows(split_of_a_job)
    with pytest.raises(AssertionError):
        check_the_split_follows(split_typed_in)
    for options in ({"groups": ["sd", "n"]}, {"splits": ["sd", "n"]}, {"affinity": "sd,n"}, {"exactly": ["sd", "n"]}):
        assert spec_faults(msgspec.structs.replace(SPEC, options=options)), options
    fields = {field.name for field in msgspec.structs.fields(find_scheme("mas").options)}
    assert fields == {"exactly", "affinity"}, "a new option: can it carry a split?"
    with pytest.raises(msgspec.ValidationError, match="unknown field `splits`"):
        msgspec.convert({**msgspec.to_builtins(SPEC), "splits": [["sd"], ["n"]]}, JobSpec)
