"""Any split you like, from the merged weights or from new ones."""

from __future__ import annotations

from typing import Literal

import msgspec

from aggregator.schemes.base import Results, Stage
from aggregator.schemes.options import options_of
from aggregator.schemes.plans import anew, continuing, merge_faults, merging, restart_faults
from models.tasks import UnknownTasksError, parse_tasks
from models.wire.job import JobSpec


class GivenSplitOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`groups` by letters or names, e.g. `["sdn", "kt"]`; `start`: the weights they start from."""

    groups: tuple[str, ...]
    start: Literal["merged", "scratch"] = "merged"


class GivenSplit:
    """From merged weights: a split "merged" for `merge_rounds`, then the groups. From scratch: the groups alone."""

    name = "given-split"
    options: type[msgspec.Struct] = GivenSplitOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """Every task of the job must be in exactly one group."""
        asked = options_of(spec, GivenSplitOptions)
        faults = merge_faults(spec) if asked.start == "merged" else restart_faults(spec)
        named: list[str] = []
        for text in asked.groups:
            try:
                group = parse_tasks(text)
            except UnknownTasksError as error:
                faults += [f"group {text!r}: {fault}" for fault in error.faults]
                continue
            faults += [] if group else [f"group {text!r} is empty"]
            faults += [f"group {text!r}: the job has no task {task}" for task in group if task not in spec.tasks]
            named += group
        faults += [f"task {task} is in {named.count(task)} groups" for task in spec.tasks if named.count(task) > 1]
        faults += [f"task {task} is in none of the groups" for task in spec.tasks if task not in named]
        return faults

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The merge phase, unprobed since nothing is left to decide; or the groups at once."""
        if options_of(spec, GivenSplitOptions).start == "merged":
            return merging(spec)
        return Stage("training", anew(spec, _groups(spec)))

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After a merge phase the groups; then nothing."""
        if stage > 0 or options_of(spec, GivenSplitOptions).start == "scratch":
            return None
        return continuing(spec, _groups(spec))


def _groups(spec: JobSpec) -> list[tuple[str, ...]]:
    """The groups with their tasks in the job's order, so that one group has one name."""
    parsed = [set(parse_tasks(text)) for text in options_of(spec, GivenSplitOptions).groups]
    return [tuple(task for task in spec.tasks if task in group) for group in parsed]


SCHEME = GivenSplit()
