"""Every scheme from submission to deployment, with agents that drop out; and what only some schemes ask of it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
from lab import CAPABILITIES, SPEC, TASKS, TESTER, Answer, Lab, MemoryLog, silent
from test_coordinator_resume import timeless

from aggregator.coordinator import actions as act
from aggregator.coordinator import events as ev
from aggregator.coordinator.seeds import learning_rate
from aggregator.record import job_status
from aggregator.schemes import schemes
from models.wire import messages as msg

OPTIONS = {"given-split": {"groups": ["sn", "d"]}}


def bumpy() -> Lab:
    """Every first attempt of some round fails: an agent refuses, one lies, one dies."""
    lab = Lab().fleet(6, testers=2)

    def trouble(round_index: int, event: Callable[[Lab, act.SendOrder], ev.AnyEvent]) -> Answer:
        def answer(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
            key = action.message.key
            first = (key.kind, key.round, key.attempt) == ("train", round_index, 0)
            return event(lab, action) if first else lab.answer(action)

        return answer

    def lies(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        assert isinstance(action.message, msg.TrainOrder)
        return ev.TrainReported(msgspec.structs.replace(lab.train_report(action.message), samples=0))

    lab.answers = {
        "a0": trouble(0, lambda _, action: ev.OrderFailed(action.message.key, "the trainer was killed")),
        "a1": trouble(1, lies),
        "a2": trouble(2, lambda *_: ev.AgentLost("a2", "power cut")),
    }
    return lab


def settled(lab: Lab) -> Lab:
    """To the end, with every agent that died coming back once all stands still."""
    lab.run()
    if not lab.core.state.agents["a2"].online:
        lab.seen("a2", boot="b1")
    return lab.run()


def submitted(lab: Lab, scheme: str, **changes: object) -> Lab:
    return lab.submit(scheme=scheme, options=OPTIONS.get(scheme, {}), **changes)


def job(scheme: str, **changes: object) -> Lab:
    return submitted(Lab().fleet(3, testers=2), scheme, **changes).run()


@pytest.mark.parametrize("scheme", sorted(schemes()))
def test_every_scheme_ends_deployed_whoever_drops_out(scheme: str) -> None:
    record = settled(submitted(bumpy(), scheme, clients_per_round=3)).record()
    assert (record.state, record.reason) == ("deployed", "")
    assert any(done.dropped for split in record.splits for done in split.rounds)
    served = [task for split in record.splits for task in split.serves]
    if scheme == "every-group":
        assert (served, record.losses, record.bundles) == ([], {}, ())
        return
    assert set(served) == set(record.losses) == set(TASKS)
    assert record.total_loss == pytest.approx(sum(record.losses.values()))
    assert {split.split for split in record.splits if split.final} == {bundle.split for bundle in record.bundles}
    assert all(split.last_round == SPEC.rounds - 1 for split in record.splits if split.final)


@pytest.mark.parametrize("scheme", ["hoa", "tag", "gradnorm", "standalone", "every-group"])
def test_a_killed_aggregator_ends_every_scheme_the_same(scheme: str) -> None:
    whole = settled(submitted(bumpy(), scheme, clients_per_round=3))
    expected, entries = timeless(whole.record()), whole.log.entries
    assert whole.job().state == "deployed"
    start = next(index for index, (event, _) in enumerate(entries) if isinstance(event, ev.JobSubmitted))
    for length in range(start + 1, len(entries), max(1, len(entries) // 12)):
        again = Lab(MemoryLog(entries[:length]), whole.snapshots[length - 1])
        again.answers = whole.answers
        assert timeless(settled(again.restart()).record()) == expected, f"killed after event {length}"


def test_gradnorms_weights_are_averaged_by_samples_and_go_on_with_the_next_order() -> None:
    lab = job("gradnorm", rounds=3)
    rounds = [[order for order in lab.orders("train") if order.key.round == number] for number in range(3)]
    assert {(order.loss_weights, order.reference_losses) for order in rounds[0]} == {((), ())}
    # The lab's devices add 0, 0.1 and 0.2, whatever their samples; first losses are 5, 6 and 7 over 10 samples.
    for number in (1, 2):
        for order in rounds[number]:
            assert order.loss_weights == pytest.approx((1.0, 1.0 + 0.1 * number, 1.0 + 0.2 * number))
            assert order.reference_losses == pytest.approx((0.5, 0.6, 0.7))
    (split,) = lab.record().splits
    assert [list(done.loss_weights) for done in split.rounds] == [list(TASKS)] * 3


def test_the_mean_of_loss_weights_counts_samples() -> None:
    lab = Lab().fleet(2, testers=1)

    def weighing(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        event = lab.answer(action)
        if isinstance(event, ev.TrainReported):
            first = event.report.key.agent == "a0"
            weights = (2.0, 0.5, 0.5) if first else (0.4, 1.0, 1.6)
            report = msgspec.structs.replace(event.report, samples=30 if first else 10, loss_weights=weights)
            return ev.TrainReported(report)
        return event

    lab.answers = {"a0": weighing, "a1": weighing}
    (split,) = submitted(lab, "gradnorm", rounds=1).run().record().splits
    # (30 * 2 + 10 * 0.4) / 40, (30 * 0.5 + 10 * 1) / 40, (30 * 0.5 + 10 * 1.6) / 40.
    assert split.rounds[0].loss_weights == pytest.approx(dict(zip(TASKS, (1.6, 0.625, 0.775), strict=True)))


@pytest.mark.parametrize(
    "scheme, weights, said",
    [
        ("gradnorm", (), "0 loss weights, expected 3"),
        ("gradnorm", (1.0, float("nan"), 1.0), "loss weights must be finite"),
        ("gradnorm", (1.0, -0.5, 1.0), "above zero"),
        ("all-in-one", (1.0, 1.0, 1.0), "3 loss weights, expected 0"),
    ],
)
def test_loss_weights_that_would_spoil_the_next_round_are_refused(
    scheme: str, weights: tuple[float, ...], said: str
) -> None:
    lab = Lab().fleet(3)

    def lying(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        event = lab.answer(action)
        if isinstance(event, ev.TrainReported):
            return ev.TrainReported(msgspec.structs.replace(event.report, loss_weights=weights))
        return event

    lab.answers = {"a0": lying}
    submitted(lab, scheme, clients_per_round=3).run()
    assert lab.job().state == "deployed"
    refused = [drop.reason for drop in lab.dropped() if drop.refused]
    assert refused
    assert all(said in reason for reason in refused)


def test_hoa_waits_for_validation_and_asks_only_those_who_can() -> None:
    lab = Lab().fleet(3, testers=0)
    lab.seen("t0", capabilities=msgspec.structs.replace(TESTER, train_samples=0, val_samples=0))
    submitted(lab, "hoa").run()
    assert lab.job().stage == 0
    assert {split.waiting for split in lab.job().splits.values()} == {
        "no agent with validation pictures for it is online"
    }
    lab.seen("t1", capabilities=msgspec.structs.replace(TESTER, train_samples=0, test_samples=0))
    record = lab.run().record()
    assert record.state == "deployed"
    asked = {(order.key.agent, order.side) for order in lab.orders("evaluate")}
    assert asked == {("t0", "test"), ("t1", "val")}
    begun = [split for split in record.splits if len(split.tasks) <= 2]
    assert all(set(split.rounds[-1].val_losses) == set(split.tasks) for split in begun)
    assert all(set(split.rounds[-1].test_losses) == set(split.tasks) for split in begun)
    assert all(done.val_losses == {} for split in begun for done in split.rounds[:-1])
    assert lab.job().state == "deployed"


def test_hoa_ends_with_its_last_validation_where_nothing_is_left_to_train() -> None:
    lab = Lab().fleet(2, testers=0)
    lab.seen("t0", capabilities=msgspec.structs.replace(TESTER, train_samples=0, val_samples=0))
    submitted(lab, "hoa", tasks=TASKS[:2], rounds=1).run()
    lab.seen("t1", capabilities=msgspec.structs.replace(TESTER, train_samples=0, test_samples=0))
    assert lab.run().record().state == "deployed"
    assert {split.split for split in lab.record().splits} == {"s", "d", "sd"}


def test_a_report_on_validation_points_is_held_to_their_number() -> None:
    lab = Lab().fleet(3)
    lab.answers["t0"] = lambda lab, action: (
        ev.EvaluateReported(msgspec.structs.replace(lab.evaluate_report(action.message), samples=6))
        if isinstance(action.message, msg.EvaluateOrder) and action.message.side == "val"
        else lab.answer(action)
    )
    submitted(lab, "hoa").run()
    assert lab.job().state == "failed"
    assert "6 samples, expected 1 to 5: so many validation samples" in lab.dropped()[0].reason


def test_standalone_devices_train_alone_and_keep_their_own_model() -> None:
    lab = job("standalone")
    record = lab.record()
    assert [split.agents for split in record.splits] == [("a0",), ("a1",), ("a2",)]
    for split in record.splits:
        assert {done.agents for done in split.rounds} == {split.agents}
    assert {(bundle.agent, bundle.split) for bundle in record.bundles} == {(f"a{i}", f"a{i}") for i in range(3)}
    means = [split.rounds[-1].test_losses for split in record.splits]
    for task in TASKS:
        assert record.losses[task] == pytest.approx(sum(each[task] for each in means) / 3)
    assert len({each[TASKS[0]] for each in means}) == 3
    lab.seen("z9")
    assert not [order for order in lab.run().orders("deploy") if order.key.agent == "z9"]


def test_standalone_waits_for_its_devices() -> None:
    lab = submitted(Lab().fleet(1, testers=1), "standalone", clients_per_round=2).run()
    assert (lab.job().state, lab.job().splits) == ("submitted", {})
    said = job_status(lab.core.state, "job", lab.now_s).reason
    assert said == "waits for 2 agents online that can train all of its tasks"
    lab.seen("a1", capabilities=CAPABILITIES)
    assert lab.run().record().state == "deployed"


def test_only_served_heads_are_exported() -> None:
    sums = {"sd": ((0.0, -1.0, -9.0), (5.0, 0.0, 5.0), (-9.0, -1.0, 0.0))}
    lab = Lab().fleet(3)

    def says(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        event = lab.answer(action)
        if isinstance(event, ev.TrainReported) and event.report.affinity is not None:
            affinity = msg.AffinitySums(1, sums["sd"])
            return ev.TrainReported(msgspec.structs.replace(event.report, affinity=affinity))
        return event

    lab.answers = dict.fromkeys(("a0", "a1", "a2"), says)
    submitted(lab, "tag", max_splits=3).run()
    (export,) = [action for action in lab.done if isinstance(action, act.Export)]
    serves = {split.split: (split.tasks, split.serves, tuple(split.test_losses)) for split in export.splits}
    s, d, n = TASKS
    assert serves == {"sd": ((s, d), (s,), (s,)), "d": ((d,), (d,), (d,)), "dn": ((d, n), (n,), (n,))}
    record = lab.record()
    assert [split.split for split in record.splits if split.final] == ["sd", "d", "dn"]
    assert record.decision is not None
    assert record.decision.splits == ((s, d), (d,), (d, n))


def test_each_clients_affinity_of_a_round_is_kept() -> None:
    (merged, *_) = job("mas", affinity_rounds=1).record().splits
    first, second = merged.rounds
    assert [(each.agent, each.batches) for each in first.affinities] == [(agent, 2) for agent in first.agents]
    assert second.affinities == ()
    record = job("mas", affinity_rounds=1).record()
    assert record.affinity is not None
    total = sum(each.sums[0][1] for each in first.affinities)
    assert record.affinity.matrix[0][1] == pytest.approx(total / 4)


def test_the_learning_rate_of_each_split_is_sent_and_recorded() -> None:
    lab = job("mas", lr_restarts=True)
    group = lab.record().splits[1]
    assert [done.lr for done in group.rounds] == [learning_rate(SPEC, 2, 2), learning_rate(SPEC, 3, 2)]
    assert group.rounds[0].lr == SPEC.train.lr
    assert {order.settings.lr for order in lab.orders("train", group.split, 3)} == {group.rounds[1].lr}


def test_an_order_that_nobody_answers_does_not_hold_up_schemes_that_serve_nothing() -> None:
    lab = Lab().fleet(3, testers=2)
    lab.answers["t1"] = silent
    submitted(lab, "every-group").run()
    assert lab.job().state != "deployed"
    for _ in range(40):
        lab.tick(SPEC.deadline_s)
    assert lab.job().state == "deployed"
    assert lab.core.state.newest_deployed == ""
