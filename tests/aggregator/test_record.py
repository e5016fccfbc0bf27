"""The record and the status: sums that add up, and nothing claimed that is not known."""

from __future__ import annotations

import msgspec
import pytest
from lab import TASKS, TESTER, Lab, silent

from aggregator.coordinator import actions as act
from aggregator.coordinator import events as ev
from aggregator.record import Record, job_record, job_status
from models.wire.codec import decode, encode


def test_a_finished_job_adds_up() -> None:
    lab = Lab().fleet(4).submit().run()
    record = lab.record()
    trained, evaluated = len(lab.orders("train")), len(lab.orders("evaluate"))
    deployed = len(lab.orders("deploy"))
    assert record.train_s == 1.5 * trained
    assert record.bytes_up == 100 * trained + 10 * evaluated + deployed
    assert record.bytes_down == 200 * trained + 20 * evaluated + 2 * deployed
    assert record.energy_j == 4.0 * trained + 2.0 * evaluated
    assert (record.energy_state, record.energy_reason) == ("estimated", "")
    assert {phase: said.energy_j for phase, said in record.energy_by_phase.items()} == {
        "train": 2.0 * trained, "wait": 2.0 * trained, "evaluate": 2.0 * evaluated
    }  # fmt: skip
    assert sum(row.energy_j or 0 for row in record.energy) == record.energy_j
    assert record.wall_s == record.finished_at - record.started_at > 0
    assert [agent.agent for agent in record.agents] == ["a0", "a1", "a2", "a3", "t0"]
    assert msgspec.json.decode(msgspec.json.encode(record), type=Record) == record


def test_losses_are_those_of_the_deployed_models() -> None:
    record = Lab().fleet(4).submit().run().record()
    final = [split for split in record.splits if split.final]
    expected = {task: loss for split in final for task, loss in split.rounds[-1].test_losses.items()}
    assert record.losses == expected
    assert list(record.losses) == list(TASKS)
    assert record.total_loss == pytest.approx(sum(expected.values()))


def test_held_out_means_weigh_samples() -> None:
    lab = Lab().fleet(2, testers=2)
    lab.seen("t0", capabilities=msgspec.structs.replace(TESTER, train_samples=0, test_samples=15))

    def few(lab: Lab, action: object) -> ev.AnyEvent:
        event = lab.answer(action)  # type: ignore[arg-type]
        if not isinstance(event, ev.EvaluateReported):
            return event
        losses = tuple(msgspec.structs.replace(loss, loss_sum=30.0, samples=15) for loss in event.report.losses)
        return ev.EvaluateReported(msgspec.structs.replace(event.report, samples=15, losses=losses))

    def many(lab: Lab, action: object) -> ev.AnyEvent:
        event = lab.answer(action)  # type: ignore[arg-type]
        if not isinstance(event, ev.EvaluateReported):
            return event
        losses = tuple(msgspec.structs.replace(loss, loss_sum=50.0, samples=5) for loss in event.report.losses)
        return ev.EvaluateReported(msgspec.structs.replace(event.report, losses=losses))

    lab.answers = {"t0": few, "t1": many}
    record = lab.submit(scheme="all-in-one").run().record()
    # (30 + 50) / 20, not the mean of 2 and 10.
    assert record.losses == dict.fromkeys(TASKS, 4.0)
    last = record.splits[0].rounds[-1]
    assert (set(last.test_agents), last.test_samples) == ({"t0", "t1"}, 20)


def test_an_evaluator_that_is_lost_is_in_the_record_and_its_samples_are_not() -> None:
    lab = Lab().fleet(2, testers=2)

    def broken(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        key = action.message.key
        return ev.OrderFailed(key, "no disk") if key.kind == "evaluate" else lab.answer(action)

    lab.answers["t0"] = broken
    record = lab.submit(scheme="all-in-one", rounds=1).run().record()
    assert record.state == "deployed"
    (done,) = record.splits[0].rounds
    assert (done.test_agents, done.test_samples) == (("t1",), 5)
    assert [(entry.agent, entry.reason) for entry in done.dropped] == [("t0", "in the evaluation: no disk")]


def test_a_model_that_too_few_evaluated_has_no_losses_and_yet_names_those_that_were_lost() -> None:
    lab = Lab().fleet(2, testers=2)
    lab.answers["t0"] = lambda lab, action: (
        ev.OrderFailed(action.message.key, "no disk") if action.message.key.kind == "evaluate" else lab.answer(action)
    )
    record = lab.submit(scheme="all-in-one", rounds=1, quorum=1.0, max_attempts=2).run().record()
    assert record.state == "failed"
    (done,) = record.splits[0].rounds
    assert (done.test_losses, done.test_agents, done.test_samples) == ({}, (), 0)
    assert [entry.agent for entry in done.dropped] == ["t0", "t0"]


def test_a_running_job_claims_no_final_losses() -> None:
    lab = Lab().fleet(4)
    lab.answers = dict.fromkeys(("a0", "a1", "a2", "a3"), silent)
    record = lab.submit().run().record()
    assert (record.losses, record.total_loss, record.finished_at) == ({}, None, None)
    assert (record.energy_j, record.energy_state) == (None, "missing")
    assert record.affinity is None
    assert record.wall_s == lab.now_s - record.started_at


def test_orders_nobody_accounted_for_make_the_joules_partial() -> None:
    lab = Lab().fleet(3)
    lab.answers["a0"] = lambda lab, action: ev.AgentLost("a0", "power cut")
    record = lab.submit(scheme="all-in-one", clients_per_round=3).run().record()
    assert record.state == "deployed"
    assert record.energy_state == "partial"
    assert record.energy_reason == "1 orders were never accounted for"


def test_skipped_files_are_counted_once_an_agent() -> None:
    lab = Lab().fleet(2)

    def skips(lab: Lab, action: object) -> ev.AnyEvent:
        event = lab.answer(action)  # type: ignore[arg-type]
        if not isinstance(event, ev.TrainReported):
            return event
        return ev.TrainReported(msgspec.structs.replace(event.report, skipped=("rgb/x.png",), skipped_total=7))

    lab.answers = {"a0": skips, "a1": skips}
    record = lab.submit(scheme="all-in-one").run().record()
    assert sorted(record.skipped) == ["a0: rgb/x.png", "a1: rgb/x.png"]
    assert record.skipped_total == 14


def test_the_status_survives_the_wire_and_follows_the_job() -> None:
    lab = Lab().fleet(4).submit().run()
    status = job_status(lab.core.state, "job", 7.0)
    assert decode(encode(status), "job_status") == status
    assert (status.state, status.deployed, status.updated_at) == ("deployed", 5, 7.0)
    assert status.total_loss == job_record(lab.core.state, "job", 7.0).total_loss
    assert [split.round for split in status.splits] == [2, *[4] * (len(status.splits) - 1)]
