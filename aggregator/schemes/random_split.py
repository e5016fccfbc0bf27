"""A split by lot from the merged weights: what measuring the affinity is worth.

Every partition into so many groups is as likely as any other, MAS's own among them. The lot is the job's seed.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import Annotated

import msgspec
from msgspec import Meta

from aggregator.schemes.base import Results, Stage
from aggregator.schemes.options import options_of
from aggregator.schemes.plans import SplitOptions, continuing, mas_decision, merge_faults, merging, split_faults
from models.wire.job import JobSpec


class RandomSplitOptions(SplitOptions, frozen=True, forbid_unknown_fields=True):
    """`groups`: how many (0: as many as MAS would take, which is measured); `draw`: the number of the lot."""

    groups: Annotated[int, Meta(ge=0)] = 0
    draw: Annotated[int, Meta(ge=0)] = 0


class RandomSplit:
    """A split "merged", then one for each group of the lot."""

    name = "random-split"
    options: type[msgspec.Struct] = RandomSplitOptions

    def faults(self, spec: JobSpec) -> list[str]:
        """As for MAS, and no more groups than tasks."""
        faults = merge_faults(spec) + split_faults(spec)
        groups, count = options_of(spec, RandomSplitOptions).groups, len(spec.tasks)
        if groups > count > 0:
            faults.append(f"option 'groups' is {groups}, but there are only {count} tasks to split")
        return faults

    def first(self, spec: JobSpec, agents: tuple[str, ...]) -> Stage:
        """The merge phase; probed only where MAS is asked for its number of groups."""
        return merging(spec, 0 if options_of(spec, RandomSplitOptions).groups else spec.affinity_rounds)

    def following(self, spec: JobSpec, agents: tuple[str, ...], stage: int, results: Results) -> Stage | None:
        """After the merge phase the groups of the lot; then nothing."""
        if stage > 0:
            return None
        asked = options_of(spec, RandomSplitOptions)
        groups = asked.groups or len(mas_decision(spec, results.affinity).splits)
        lot = hashlib.sha256(f"random-split\x1f{spec.seed}\x1f{asked.draw}".encode()).digest()
        ticket = int.from_bytes(lot, "big") % stirling(len(spec.tasks), groups)
        drawn = partition_of(len(spec.tasks), groups, ticket)
        return continuing(spec, [tuple(spec.tasks[index] for index in group) for group in drawn])


@cache
def stirling(count: int, groups: int) -> int:
    """How many partitions of `count` things into exactly `groups` groups there are (second kind)."""
    if count == groups:
        return 1
    if not 0 < groups < count:
        return 0
    return stirling(count - 1, groups - 1) + groups * stirling(count - 1, groups)


def partition_of(count: int, groups: int, ticket: int) -> list[list[int]]:
    """Partition number `ticket`, 0 .. stirling(count, groups) - 1, of `0 .. count-1`: each number another one.

    The last thing is a group of its own, or joins one of the groups of the others.
    """
    if not count:
        return []
    alone = stirling(count - 1, groups - 1)
    if ticket < alone:
        return [*partition_of(count - 1, groups - 1, ticket), [count - 1]]
    ticket, joined = divmod(ticket - alone, groups)
    found = partition_of(count - 1, groups, ticket)
    found[joined].append(count - 1)
    return found


SCHEME = RandomSplit()
