"""Whether a job can be run at all, before anything of it is begun."""

from __future__ import annotations

from aggregator.schemes import find_scheme
from models.tasks import TASKS
from models.wire.job import JobSpec


def spec_faults(spec: JobSpec) -> list[str]:
    """Everything in `spec` that cannot be run; empty when all can."""
    faults = [f"unknown task {task!r}; known are {', '.join(TASKS)}" for task in spec.tasks if task not in TASKS]
    repeated = sorted({task for task in spec.tasks if spec.tasks.count(task) > 1})
    faults += [f"task {task} is given {spec.tasks.count(task)} times" for task in repeated]
    if not spec.tasks:
        faults.append("no task is given")
    try:
        faults += find_scheme(spec.scheme).faults(spec)
    except ValueError as error:
        faults.append(str(error))
    return faults
