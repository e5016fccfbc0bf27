"""A killed aggregator: replay the journal up to any event, resume, and end as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from lab import SPEC, Lab, MemoryLog, silent

from aggregator.coordinator import Coordinator, State, live_blobs, resume, step
from aggregator.coordinator import actions as act
from aggregator.coordinator import events as ev
from aggregator.journal import Journal
from aggregator.record import Record


def timeless(record: Record) -> object:
    """The record without its times; a restart is an event and takes its second."""
    plain = msgspec.to_builtins(record)
    for key in ("started_at", "finished_at", "wall_s"):
        del plain[key]
    for split in plain["splits"]:
        for done in split["rounds"]:
            del done["wall_s"]
    return plain


def troubled() -> Lab:
    """A job in which an agent refuses, one lies, one dies and comes back, and one is late."""
    lab = Lab().fleet(6, testers=2)

    def refuses_once(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        if action.message.key.round == 0 and action.message.key.kind == "train":
            return ev.OrderFailed(action.message.key, "the trainer was killed")
        return lab.answer(action)

    def lies_in_round_1(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        event = lab.answer(action)
        if isinstance(event, ev.TrainReported) and event.report.key.round == 1:
            return ev.TrainReported(msgspec.structs.replace(event.report, samples=0))
        return event

    def dies_in_round_2(lab: Lab, action: act.SendOrder) -> ev.AnyEvent:
        if action.message.key.round == 2:
            return ev.AgentLost("a2", "power cut")
        return lab.answer(action)

    lab.answers = {"a0": refuses_once, "a1": lies_in_round_1, "a2": dies_in_round_2}
    return lab


@pytest.mark.parametrize("scheme", ["mas", "one-by-one"])
def test_resuming_after_any_event_ends_in_the_same_record_and_weights(scheme: str) -> None:
    whole = troubled().submit(scheme=scheme, clients_per_round=3, quorum=0.5).run()
    expected, entries = timeless(whole.record()), whole.log.entries
    assert whole.job().state == "deployed"
    assert any(done.dropped for split in whole.record().splits for done in split.rounds)
    assert len(entries) == len(whole.snapshots) > 30
    submitted = next(index for index, (event, _) in enumerate(entries) if isinstance(event, ev.JobSubmitted))
    for length in range(submitted + 1, len(entries) + 1):
        again = Lab(MemoryLog(entries[:length]), whole.snapshots[length - 1])
        again.answers = whole.answers
        again.restart().run()
        assert timeless(again.record()) == expected, f"killed after event {length}: {entries[length - 1][0]}"


def test_replay_alone_gives_the_very_same_state() -> None:
    lab = troubled().submit().run()
    assert Coordinator(MemoryLog(lab.log.entries)).state == lab.core.state


def test_killed_again_and_again_it_still_ends_the_same(tmp_path: Path) -> None:
    whole = Lab().fleet(4).submit().run()
    url = f"sqlite:///{tmp_path / 'journal.db'}"
    store: dict[str, bytes] = {}
    lab = Lab()
    for life in range(100):
        with Journal(url) as journal:
            lab = Lab(store=store)
            lab.core = Coordinator(journal)
            lab.now_s = 1000.0 + 50 * life
            if life == 0:
                lab.fleet(4).submit()
            lab.restart()
            for _ in range(4 + life % 3):
                if lab.todo:
                    action = lab.todo.popleft()
                    event = lab.perform(action)
                    if event is not None:
                        lab.happen(event)
            store = lab.store
        if lab.job().ended:
            break
    assert lab.job().state == "deployed"
    assert [s.model_sha256 for s in lab.record().splits] == [s.model_sha256 for s in whole.record().splits]


def test_resume_names_exactly_what_is_outstanding() -> None:
    lab = Lab().fleet(3)
    lab.answers = dict.fromkeys(("a0", "a1", "a2"), silent)
    lab.submit(scheme="all-in-one", clients_per_round=3).run()
    lab.happen(ev.TrainReported(lab.train_report(lab.orders("train")[1])))
    found = resume(lab.core.state, lab.now_s)
    sums = [action for action in found if isinstance(action, act.Accumulate)]
    assert [(action.index, action.contribution.agent) for action in sums] == [(0, lab.sent[1].key.agent)]
    assert [a.message for a in found if isinstance(a, act.SendOrder)] == [lab.sent[0], lab.sent[2]]
    assert [action.job for action in found if isinstance(action, act.PublishStatus)] == ["job"]
    assert len(found) == 4


def test_a_restart_gives_open_orders_their_full_time_again() -> None:
    lab = Lab().fleet(2)
    lab.answers = dict.fromkeys(("a0", "a1"), silent)
    lab.submit(scheme="all-in-one").run()
    lab.now_s += 10 * SPEC.deadline_s
    lab.restart().tick(SPEC.deadline_s / 2)
    assert lab.job().splits["merged"].current is not None
    assert lab.job().splits["merged"].current.attempt == 0
    assert len(lab.orders("train")) == 4, "both orders were sent a second time"
    lab.tick(SPEC.deadline_s)
    assert lab.job().splits["merged"].current.attempt == 1


def test_nothing_outstanding_needs_a_forgotten_blob() -> None:
    lab = troubled().submit(clients_per_round=3)
    while lab.todo:
        action = lab.todo.popleft()
        event = lab.perform(action)
        if event is not None:
            lab.happen(event)
        assert live_blobs(lab.core.state) <= set(lab.store)


def test_the_state_stays_small() -> None:
    def size(rounds: int) -> int:
        lab = Lab().fleet(4).submit(scheme="all-in-one", rounds=rounds, eval_every=100)
        lab.run()
        return len(msgspec.msgpack.encode(lab.core.state))

    # What a round leaves behind is what the record shows of it: who, how many, means, and joules with what is known
    # of them.
    assert (size(60) - size(20)) / 40 < 500


def test_a_step_leaves_its_input_as_it_was() -> None:
    lab = troubled().submit().run()
    state = State()
    for event, at_s in lab.log.entries:
        before = msgspec.msgpack.encode(state)
        after, _ = step(state, event, at_s)
        assert msgspec.msgpack.encode(state) == before
        state = after


def test_time_does_not_run_backwards() -> None:
    lab = Lab().fleet(2).submit(scheme="all-in-one")
    lab.happen(ev.AgentSeen("a9", "b0", lab.core.state.agents["a0"].capabilities), -500.0)
    times = [at_s for _, at_s in lab.log.entries]
    assert times == sorted(times)
