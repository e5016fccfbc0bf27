"""Whatever happens in whatever order: rounds end, an update counts once, weights are samples."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st
from lab import CAPABILITIES, SPEC, Lab, MemoryLog, silent

from aggregator.coordinator import Coordinator, State, step
from aggregator.coordinator import actions as act
from aggregator.coordinator import events as ev
from models.wire import messages as msg

NAMES = tuple(f"a{index}" for index in range(4))
moves = st.one_of(
    st.tuples(st.just("answer"), st.integers(0, 7)),
    st.tuples(st.just("repeat"), st.integers(0, 50)),
    st.tuples(st.just("fail"), st.integers(0, 7), st.booleans()),
    st.tuples(st.just("lie"), st.integers(0, 7)),
    st.tuples(st.just("lost"), st.sampled_from(NAMES)),
    st.tuples(st.just("seen"), st.sampled_from(NAMES), st.sampled_from(("b0", "b1"))),
    st.tuples(st.just("tick"), st.sampled_from((1.0, 60.0, 200.0))),
    st.tuples(st.just("submit"), st.integers(0, 6)),
    st.tuples(st.just("cancel"), st.integers(0, 6)),
    st.tuples(st.just("effect"), st.integers(0, 3)),
)
SCHEMES = ("mas", "one-by-one", "all-in-one", "hoa", "standalone", "gradnorm", "tag")


class Chaos:
    """A lab in which effects and agents wait until they are told."""

    def __init__(self) -> None:
        self.lab = Lab()
        self.lab.answers = dict.fromkeys((*NAMES, "t0"), silent)
        for name in NAMES:
            self.lab.seen(name, capabilities=msgspec.structs.replace(CAPABILITIES, test_samples=3, val_samples=3))
        self.effects: list[act.AnyAction] = []
        self.spoken: list[ev.AnyEvent] = []
        self.counted: list[tuple[str, str, int, str]] = []
        self.average_weights: list[tuple[int, int]] = []

    def settle(self) -> None:
        while self.lab.todo:
            action = self.lab.todo.popleft()
            self.look(action)
            if isinstance(action, act.PrepareModel | act.Average | act.Export):
                self.effects.append(action)
            else:
                self.lab.perform(action)

    def look(self, action: act.AnyAction) -> None:
        if isinstance(action, act.Accumulate):
            place = (action.job, action.split, action.round, action.contribution.agent)
            assert place not in self.counted, "an update counts at most once"
            self.counted.append(place)
        if isinstance(action, act.Average):
            weight = sum(contribution.samples for contribution in action.contributions)
            assert weight == sum(10 + int(contribution.agent[1:]) for contribution in action.contributions)
            assert action.contributions

    def open(self) -> list[act.SendOrder]:
        busy = [agent.busy for agent in self.lab.core.state.agents.values() if agent.busy]
        return [act.SendOrder(next(order for order in reversed(self.lab.sent) if order.key == key)) for key in busy]

    def say(self, event: ev.AnyEvent) -> None:
        self.spoken.append(event)
        self.lab.happen(event)

    def move(self, move: tuple[object, ...]) -> None:
        kind, which = move[0], move[1]
        orders = self.open()
        if kind in ("answer", "fail", "lie") and orders:
            self.speak(str(kind), orders[int(str(which)) % len(orders)], bool(move[-1]))
        elif kind == "repeat" and self.spoken:
            self.lab.happen(self.spoken[int(str(which)) % len(self.spoken)])
        elif kind == "lost":
            self.lab.happen(ev.AgentLost(str(which), "gone"))
        elif kind == "seen":
            self.lab.seen(
                str(which), str(move[2]), msgspec.structs.replace(CAPABILITIES, test_samples=3, val_samples=3)
            )
        elif kind == "tick":
            self.lab.happen(ev.Tick(), float(str(which)))
        elif kind == "submit":
            number = int(str(which))
            self.lab.submit(f"job{which}", scheme=SCHEMES[number], seed=number, quorum=1.0 if number != 1 else 0.5)
        elif kind == "cancel":
            self.lab.happen(ev.JobCancelled(f"job{which}"))
        elif kind == "effect" and self.effects:
            self.do(self.effects.pop(int(str(which)) % len(self.effects)))
        self.settle()

    def speak(self, kind: str, order: act.SendOrder, flag: bool) -> None:
        if kind == "fail":
            self.say(ev.OrderFailed(order.message.key, "no", final=flag))
            return
        event = self.lab.answer(order)
        if kind == "lie" and isinstance(event, ev.TrainReported):
            event = ev.TrainReported(msgspec.structs.replace(event.report, losses=()))
        self.say(event)

    def do(self, action: act.AnyAction) -> None:
        if self.lab.job(action.job).ended:  # type: ignore[union-attr]
            return  # its blobs may be gone
        event = self.lab.perform(action)
        assert event is not None
        self.say(event)

    def finish(self) -> None:
        """From here on everything works; whatever was begun must come to an end."""
        for name in NAMES:
            self.lab.seen(name, "b9", msgspec.structs.replace(CAPABILITIES, test_samples=3, val_samples=3))
        self.settle()
        for _ in range(3000):
            orders = self.open()
            if self.effects:
                self.do(self.effects.pop(0))
            elif orders:
                self.say(self.lab.answer(orders[0]))
            else:
                return
            self.settle()
        raise AssertionError("it does not come to an end")


@settings(max_examples=120, deadline=None)
@given(st.lists(moves, max_size=60))
def test_everything_begun_comes_to_an_end(chosen: list[tuple[object, ...]]) -> None:
    chaos = Chaos()
    chaos.move(("submit", 0))
    for move in chosen:
        chaos.move(move)
    chaos.finish()
    for job in chaos.lab.core.state.jobs.values():
        assert job.ended, job.state
        assert job.reason or job.state != "failed"
        for split in chaos.lab.record(job.job).splits:
            for done in split.rounds:
                assert done.samples == sum(10 + int(agent[1:]) for agent in done.agents)
                assert len(done.agents) >= 1
                assert done.attempt < SPEC.max_attempts
    assert not any(agent.orders for agent in chaos.lab.core.state.agents.values())


@settings(max_examples=60, deadline=None)
@given(st.lists(moves, max_size=50))
def test_the_log_alone_rebuilds_the_state_and_no_change_is_the_same_object(chosen: list[tuple[object, ...]]) -> None:
    chaos = Chaos()
    chaos.move(("submit", 0))
    for move in chosen:
        before = chaos.lab.core.state
        chaos.move(move)
        assert chaos.lab.core.state is before or chaos.lab.core.state != before
    coded = [
        (msgspec.msgpack.decode(msgspec.msgpack.encode(event), type=ev.AnyEvent), at_s)
        for event, at_s in chaos.lab.log.entries
    ]
    assert Coordinator(MemoryLog(coded)).state == chaos.lab.core.state


@given(st.sampled_from(NAMES), st.integers(0, 3), st.integers(0, 3), st.sampled_from(("train", "evaluate", "deploy")))
def test_nonsense_from_agents_never_changes_anything(agent: str, round_: int, attempt: int, kind: str) -> None:
    chaos = Chaos()
    key = msg.OrderKey("job0", "merged", round_, agent, attempt, kind)  # type: ignore[arg-type]
    state: State = chaos.lab.core.state
    after, actions = step(state, ev.OrderFailed(key, "?"), 5000.0)
    assert after is state
    assert [type(action) for action in actions] == [act.Dropped]
