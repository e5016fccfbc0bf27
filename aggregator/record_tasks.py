"""What each task of a job cost, for its record: every split's joules divided by the rule of `attribution`."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from aggregator.attribution import ENCODER, Line, Point, Rule, fit_line, share_out, task_weights
from aggregator.coordinator.messages import settings_of
from aggregator.coordinator.state import Job, Split
from models.energy import EnergySummary, EnergyTotal, merge_energy, summarise_energy
from models.wire.messages import EnergyState

METERED: frozenset[EnergyState] = frozenset({"measured", "calibrated"})


class TaskEnergy(msgspec.Struct, frozen=True):
    """Joules of one task over all splits, phases and devices, and of each phase."""

    energy: EnergySummary
    phases: dict[str, EnergySummary]


class TaskCosts(msgspec.Struct, frozen=True):
    """Joules by task, and the rule that divided them.

    `shared` and `own` are the encoder's part and each head's, in `unit`; both empty where every part is equal. `line`
    is the line through metered joules, whichever rule is used; `why` says why the rule is not the one asked for.
    """

    rule: Rule
    unit: str
    shared: float
    own: dict[str, float]
    line: Line | None
    why: str
    tasks: dict[str, TaskEnergy]


def task_costs(job: Job) -> TaskCosts:
    """The joules of a job by task. Those of a split and a phase are preserved to the last bit."""
    line = fit_line(points_of(job))
    rule, why = _rule(job, line)
    used = line if rule == "fitted" else None
    sums: dict[str, dict[str, EnergyTotal]] = {task: {} for task in job.spec.tasks}
    for name, phases in job.spent.energy.items():
        tasks = job.splits[name].tasks
        for phase, total in phases.items():
            for task, share in zip(tasks, share_out(total, task_weights(phase, tasks, job.parts, used)), strict=True):
                sums[task][phase] = merge_energy(sums[task].get(phase, EnergyTotal()), share)
    shared, own = _rates(job, rule, used)
    return TaskCosts(
        rule=rule,
        unit={"fitted": "J per picture", "counted": "MAC per picture", "equal": ""}[rule],
        shared=shared,
        own=own,
        line=line,
        why=why,
        tasks={task: _task(job, task, phases) for task, phases in sums.items()},
    )


def points_of(job: Job) -> tuple[Point, ...]:
    """Joules of training per picture of each split of which all is known, for the line through them."""
    points = []
    for name, phases in job.spent.energy.items():
        split, total = job.splits[name], phases.get("train")
        pictures = sum(done.samples * settings_of(job, split, done.round).epochs for done in split.history)
        if total is None or not pictures or not _whole(job, split, total):
            continue
        metered = bool(total.states) and set(total.states) <= METERED
        source, scope = " + ".join(total.sources), " + ".join(total.scopes)
        points.append(Point(len(split.tasks), total.energy_j / pictures, metered, source, scope))
    return tuple(points)


def _whole(job: Job, split: Split, total: EnergyTotal) -> bool:
    """Whether the split's joules are those of the pictures it counted: nothing missing, no order lost on the way."""
    lost = any(done.dropped for done in split.history) or any(k.split == split.split for k in job.spent.unanswered)
    alone = len(total.sources) == 1 and len(total.scopes) == 1
    return not (total.missing or lost or "partial" in total.states) and alone


def _rule(job: Job, line: Line | None) -> tuple[Rule, str]:
    if ENCODER not in job.parts or any(task not in job.parts for task in job.spec.tasks):
        return "equal", "the operations of its network were not counted"
    if job.spec.attribution == "fitted" and line is None:
        why = "no line can be fitted: that takes splits of different numbers of tasks, wholly metered by one source"
        return "counted", why
    return job.spec.attribution, ""


def _rates(job: Job, rule: Rule, line: Line | None) -> tuple[float, dict[str, float]]:
    if rule == "equal":
        return 0.0, {}
    macs: Mapping[str, float] = {part: float(work.macs) for part, work in job.parts.items()}
    if line is None:
        return macs[ENCODER], {task: macs[task] for task in job.spec.tasks}
    mean = math.fsum(macs[task] for task in job.spec.tasks) / len(job.spec.tasks)
    return line.shared_j, {task: line.own_j * (macs[task] / mean if mean else 1.0) for task in job.spec.tasks}


def _task(job: Job, task: str, phases: dict[str, EnergyTotal]) -> TaskEnergy:
    total = EnergyTotal()
    for part in phases.values():
        total = merge_energy(total, part)
    lacking = sum(1 for key in job.spent.unanswered if task in job.splits[key.split].tasks)
    return TaskEnergy(
        energy=with_unanswered(lacking, summarise_energy(total)),
        phases={phase: summarise_energy(part) for phase, part in phases.items()},
    )


def with_unanswered(count: int, summary: EnergySummary) -> EnergySummary:
    """The summary, no better than partial where `count` orders were never accounted for."""
    if not count:
        return summary
    lacking = f"{count} orders were never accounted for"
    return msgspec.structs.replace(
        summary,
        state="partial" if summary.energy_j is not None else "missing",
        reason="; ".join(part for part in (summary.reason, lacking) if part),
    )
