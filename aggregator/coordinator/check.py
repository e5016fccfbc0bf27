"""Whether a job can be run at all, before anything of it is begun."""

from __future__ import annotations

import msgspec

from aggregator.schemes import find_scheme
from aggregator.schemes.options import option_faults, valid_options
from models.tasks import TASKS
from models.wire.job import JobSpec


def spec_faults(spec: JobSpec) -> list[str]:
    """Everything in `spec` that cannot be run; empty when all can."""
    faults = [f"unknown task {task!r}; known are {', '.join(TASKS)}" for task in spec.tasks if task not in TASKS]
    repeated = sorted({task for task in spec.tasks if spec.tasks.count(task) > 1})
    faults += [f"task {task} is given {spec.tasks.count(task)} times" for task in repeated]
    if not spec.tasks:
        faults.append("no task is given")
    return faults + _scheme_faults(spec)


def _scheme_faults(spec: JobSpec) -> list[str]:
    """Those of the options, and what else the scheme finds with those options that are valid."""
    try:
        scheme = find_scheme(spec.scheme)
    except ValueError as error:
        return [str(error)]
    valid = valid_options(spec, scheme.options)
    more = [] if valid is None else scheme.faults(msgspec.structs.replace(spec, options=valid))
    return option_faults(spec, scheme.options) + more
