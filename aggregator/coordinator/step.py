"""One step of the machine: `(state, event, now) -> (state, actions)`, and what is outstanding in a state.

A step that changes nothing returns the very same state, so that callers need not journal such an event.
Updates are averaged in the order their reports were journalled; that order, the job's seed and the agents online
fix every weight of the result.
"""

from __future__ import annotations

import msgspec

from aggregator.coordinator import deploys, evaluations, lifecycle, rounds
from aggregator.coordinator.accounts import account, account_energy, evaluate_faults, train_faults, why_unwanted
from aggregator.coordinator.actions import Accumulate, AnyAction, Dropped, Forget, PublishStatus, SendOrder
from aggregator.coordinator.blobs import job_blobs, live_blobs
from aggregator.coordinator.events import (
    AgentLost,
    AgentSeen,
    AnyEvent,
    BundlesReady,
    Deployed,
    EffectFailed,
    EvaluateReported,
    JobCancelled,
    JobSubmitted,
    ModelReady,
    OrderFailed,
    Restarted,
    Tick,
    TrainReported,
)
from aggregator.coordinator.fleet import dispatch, strike, take_order
from aggregator.coordinator.messages import (
    average_action,
    export_action,
    model_of,
    order_message,
    prepare_action,
)
from aggregator.coordinator.state import Agent, Job, Order, State
from aggregator.coordinator.turn import Turn
from models.wire.messages import DeployReport, EvaluateReport, OrderKey, TrainReport


def step(state: State, event: AnyEvent, now_s: float) -> tuple[State, tuple[AnyAction, ...]]:
    """Let `event` happen at `now_s` (seconds since the epoch, never running backwards)."""
    turn = Turn(state, now_s)
    _take(turn, event)
    for name in list(turn.state.jobs):
        if not turn.state.jobs[name].ended:
            lifecycle.advance(turn, name)
    dispatch(turn)
    _announce(turn, state)
    return turn.state, tuple(turn.actions)


def resume(state: State, now_s: float) -> tuple[AnyAction, ...]:
    """Everything outstanding in `state`, in the order it was first asked for, and every job's status.

    `now_s` does not matter to what is outstanding; raise `Restarted` to give open orders their full time again.
    """
    found: list[tuple[int, int, AnyAction]] = []
    for job in state.jobs.values():
        found += [(serial, len(found) + index, action) for index, (serial, action) in enumerate(_effects(job))]
    for agent in state.agents.values():
        for order in agent.orders:
            if order.sent_at is not None:
                message = order_message(state.jobs[order.key.job], order.key)
                found.append((order.serial, len(found), SendOrder(message)))
    ordered = [action for _, _, action in sorted(found, key=lambda entry: entry[:2])]
    return (*ordered, *(PublishStatus(job) for job in state.jobs))


def next_deadline(state: State) -> float | None:
    """When a `Tick` can next change something, in seconds since the epoch; None if nothing has a deadline."""
    times = [_expires_at(state, order) for agent in state.agents.values() for order in agent.orders]
    times += [
        split.current.deadline_at
        for job in state.jobs.values()
        for split in job.splits.values()
        if split.current is not None
    ]
    return min((time for time in times if time is not None), default=None)


def _expires_at(state: State, order: Order) -> float | None:
    return None if order.sent_at is None else order.sent_at + state.jobs[order.key.job].spec.deadline_s


def _effects(job: Job) -> list[tuple[int, AnyAction]]:
    """Outstanding effects of a job with their serials; running sums come first, since nothing waits for them."""
    effects: list[tuple[int, AnyAction]] = []
    if job.state == "exporting" and not all(split.bundle for split in job.final_splits):
        effects.append((job.effect_serial, export_action(job)))
    for split in job.splits.values() if not job.ended else ():
        if split.phase == "preparing":
            effects.append((split.effect_serial, prepare_action(job, split)))
        elif split.phase == "averaging":
            effects.append((split.effect_serial, average_action(job, split)))
        elif split.current is not None:
            base = model_of(job, split)
            effects += [
                (0, Accumulate(job.job, split.split, split.round, index, base, contribution))
                for index, contribution in enumerate(split.current.contributions)
            ]
    return effects


def _take(turn: Turn, event: AnyEvent) -> None:
    match event:
        case AgentSeen():
            _agent_seen(turn, event)
        case AgentLost():
            _agent_lost(turn, event)
        case JobSubmitted(job=job, spec=spec):
            if job in turn.state.jobs:
                turn.act(Dropped("", None, f"job {job} exists already"))
            else:
                lifecycle.submit(turn, job, spec)
        case JobCancelled():
            _cancel(turn, event)
        case TrainReported(report=report):
            _train_reported(turn, report)
        case EvaluateReported(report=report):
            _evaluate_reported(turn, report)
        case Deployed(report=report):
            _deployed(turn, report)
        case OrderFailed():
            _order_failed(turn, event)
        case ModelReady():
            if not lifecycle.model_ready(turn, event):
                turn.act(Dropped("", None, f"model of {event.job}/{event.split} round {event.round} is not waited for"))
        case BundlesReady():
            if not lifecycle.bundles_ready(turn, event):
                turn.act(Dropped("", None, f"bundles of {event.job} are not waited for"))
        case EffectFailed():
            _effect_failed(turn, event)
        case Tick():
            _expire(turn)
        case Restarted():
            _restart(turn)


def _agent_seen(turn: Turn, event: AgentSeen) -> None:
    before = turn.state.agents.get(event.agent)
    rebooted = before is not None and before.boot != event.boot
    agent = Agent(
        event.agent,
        event.boot,
        online=True,
        capabilities=event.capabilities,
        strikes=before.strikes if before and not rebooted else 0,
        orders=before.orders if before else (),
    )
    if agent == before:
        return
    turn.put_agent(agent)
    if rebooted and agent.busy is not None:
        _lose(turn, agent.busy, "the agent restarted")
    if turn.state.newest_deployed and (before is None or rebooted or not before.online):
        deploys.deploy_to(turn, turn.state.newest_deployed, event.agent)


def _agent_lost(turn: Turn, event: AgentLost) -> None:
    agent = turn.state.agents.get(event.agent)
    if agent is None or not agent.online:
        return
    turn.put_agent(msgspec.structs.replace(agent, online=False))
    for order in agent.orders:
        _lose(turn, order.key, event.reason or "the agent went offline")


def _cancel(turn: Turn, event: JobCancelled) -> None:
    job = turn.state.jobs.get(event.job)
    if job is None or job.ended:
        turn.act(Dropped("", None, f"job {event.job} is not running"))
    else:
        lifecycle.end(turn, event.job, "cancelled", event.reason)


def _effect_failed(turn: Turn, event: EffectFailed) -> None:
    job = turn.state.jobs.get(event.job)
    if job is None or job.ended:
        turn.act(Dropped("", None, f"{event.what} of {event.job} failed after its end: {event.reason}"))
        return
    what = {"prepare": "the first model of", "average": "the average of", "export": "the export of"}[event.what]
    lifecycle.end(turn, event.job, "failed", f"{what} {event.split or event.job} failed: {event.reason}")


def _train_reported(turn: Turn, report: TrainReport) -> None:
    if not _wanted(turn, report):
        return
    job = turn.state.jobs[report.key.job]
    faults = train_faults(job, job.splits[report.key.split], report)
    if faults:
        _refuse(turn, report, faults)
        return
    _answered(turn, report)
    rounds.reported(turn, report)


def _evaluate_reported(turn: Turn, report: EvaluateReport) -> None:
    if not _wanted(turn, report):
        return
    faults = evaluate_faults(turn.split(report.key.job, report.key.split), report)
    if faults:
        _refuse(turn, report, faults)
        return
    _answered(turn, report)
    evaluations.reported(turn, report)


def _deployed(turn: Turn, report: DeployReport) -> None:
    if not _wanted(turn, report):
        return
    bundle = turn.split(report.key.job, report.key.split).bundle
    if bundle is None or bundle.manifest.sha256 != report.bundle_sha256:
        _refuse(turn, report, [f"another bundle is active: {report.bundle_sha256}"])
        return
    _answered(turn, report)
    deploys.deployed(turn, report)


def _wanted(turn: Turn, report: TrainReport | EvaluateReport | DeployReport) -> bool:
    """Whether the report is waited for; the joules of late work count all the same, once."""
    reason = why_unwanted(turn.state, report.key)
    if reason is None:
        return True
    turn.act(Dropped(report.key.agent, report.key, reason))
    job = turn.state.jobs.get(report.key.job)
    if job is not None and report.key in job.spent.unanswered:
        account(turn, report)
    if isinstance(report, TrainReport) and report.update.sha256 not in live_blobs(turn.state):
        turn.act(Forget((report.update.sha256,)))
    return False


def _answered(turn: Turn, report: TrainReport | EvaluateReport | DeployReport) -> None:
    take_order(turn, report.key, answered=True)
    strike(turn, report.key.agent, reset=True)
    account(turn, report)


def _refuse(turn: Turn, report: TrainReport | EvaluateReport | DeployReport, faults: list[str]) -> None:
    reason = "; ".join(faults)
    turn.act(Dropped(report.key.agent, report.key, reason, refused=True))
    account_energy(turn, report.key, report.energy)
    strike(turn, report.key.agent)
    _lose(turn, report.key, reason, answered=True)
    if isinstance(report, TrainReport) and report.update.sha256 not in live_blobs(turn.state):
        turn.act(Forget((report.update.sha256,)))


def _order_failed(turn: Turn, event: OrderFailed) -> None:
    reason = why_unwanted(turn.state, event.key)
    job = turn.state.jobs.get(event.key.job)
    if reason is not None:
        turn.act(Dropped(event.key.agent, event.key, reason))
        if job is not None and event.key in job.spent.unanswered:
            account_energy(turn, event.key, event.energy)
        return
    account_energy(turn, event.key, event.energy)
    strike(turn, event.key.agent)
    _lose(turn, event.key, event.reason, final=event.final, answered=True)


def _expire(turn: Turn) -> None:
    for agent in list(turn.state.agents.values()):
        for order in agent.orders:
            expires_at = _expires_at(turn.state, order)
            if expires_at is not None and turn.now_s >= expires_at:
                strike(turn, agent.agent)
                _lose(turn, order.key, "no answer before the deadline", replace=False)


def _lose(
    turn: Turn, key: OrderKey, reason: str, *, final: bool = False, replace: bool = True, answered: bool = False
) -> None:
    """Close an order that came to nothing, and tell those who wait for it."""
    take_order(turn, key, answered=answered)
    if key.kind == "train":
        rounds.lost(turn, key, reason, final=final, replace=replace)
    elif key.kind == "evaluate":
        evaluations.lost(turn, key, reason, final=final)
    else:
        deploys.lost(turn, key, reason)


def _restart(turn: Turn) -> None:
    """Give what is open its full time again, since the time we were away was not the agents'."""
    for agent in list(turn.state.agents.values()):
        orders = tuple(
            order if order.sent_at is None else msgspec.structs.replace(order, sent_at=turn.now_s)
            for order in agent.orders
        )
        if orders != agent.orders:
            turn.put_agent(msgspec.structs.replace(agent, orders=orders))
    for job in list(turn.state.jobs.values()):
        for split in job.splits.values():
            if split.current is not None and split.current.deadline_at is not None:
                deadline_at = turn.now_s + job.spec.deadline_s
                current = msgspec.structs.replace(split.current, deadline_at=deadline_at)
                turn.put_split(job.job, msgspec.structs.replace(split, current=current))
    turn.actions.extend(resume(turn.state, turn.now_s))


def _announce(turn: Turn, before: State) -> None:
    """Say which jobs changed, and which blobs nothing needs any more."""
    changed = [job for name, job in turn.state.jobs.items() if before.jobs.get(name) is not job]
    needed_before: set[str] = set()
    for job in changed:
        earlier = before.jobs.get(job.job)
        needed_before |= job_blobs(earlier) if earlier else frozenset()
        if PublishStatus(job.job) not in turn.actions:
            turn.act(PublishStatus(job.job))
    if needed_before and (gone := needed_before - live_blobs(turn.state)):
        turn.act(Forget(tuple(sorted(gone))))
