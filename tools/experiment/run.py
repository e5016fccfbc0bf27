"""From an experiment's file to its runs: every fault before anything is trained, then the grid."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from aggregator.coordinator import spec_faults
from edge_agent.datasets.layout import DatasetError
from edge_agent.inventory import InventoryError
from models.config import ConfigError
from models.wire.job import JobSpec
from tools.demo.plan import PlanError
from tools.experiment.folder import check_changed, hold_folder, keep_spec, space_faults, surroundings_notes
from tools.experiment.plan import RunPlan, choose_rows, data_root, plan_runs, read_data
from tools.experiment.predict import predict_all
from tools.experiment.run_record import RUN_FILE, DataUsed, Run, read_run, run_folder
from tools.experiment.runner import Shown, run_grid
from tools.experiment.spec import Experiment, PlannedRow, load_experiment


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the command line asks for. Empty `only` and `seeds`: all; `jobs` 0: as the file says."""

    spec: Path
    out: Path | None = None
    data: Path | None = None
    jobs: int = 0
    only: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    redo: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepared:
    """An experiment that can be run as it stands."""

    experiment: Experiment
    plans: tuple[RunPlan, ...]
    out: Path
    slots: int


def prepare(wanted: Wanted, make: bool) -> Prepared:
    """Everything up to the first run; with `make`, data that are not there yet are made as the file says.

    Raises ConfigError with every fault of the file, its rows, the data and the disk at once.
    """
    experiment, faults = load_experiment(wanted.spec)
    out = wanted.out or Path(f"mas-experiment-{experiment.spec.name}")
    rows = _chosen(experiment, wanted, faults)
    plans: list[RunPlan] = []
    try:
        root = data_root(experiment, wanted.data)
        if make:
            make_data(experiment, root)
        data = read_data(root, experiment.spec)
    except (PlanError, DatasetError, InventoryError) as error:
        faults += error.faults if isinstance(error, DatasetError) else [str(error)]
        faults += [f"row {row.name!r}: {fault}" for row in rows for fault in spec_faults(row.job)]
    else:
        faults += _job_faults(rows, data, root)
        plans = plan_runs(experiment, rows, wanted.seeds, data, root, out, wanted.data)
        if not faults:
            plans = _with_predictions(plans, data, faults)
    faults += device_faults(experiment.spec.device)
    slots = wanted.jobs or experiment.spec.jobs or os.cpu_count() or 1
    faults += space_faults(out, len(plans) or len(rows), min(slots, sum(row.mode == "fleet" for row in rows)))
    if faults:
        raise ConfigError(str(wanted.spec), list(dict.fromkeys(faults)))
    return Prepared(experiment, tuple(msgspec.structs.replace(plan, slots=slots) for plan in plans), out, slots)


def run_experiment(prepared: Prepared, wanted: Wanted, shown: Shown) -> list[Run]:
    """All that is not done yet, then the records of everything that was asked for.

    Raises FolderTakenError, RunRecordError, DiskFullError, OSError; what has ended until then is recorded.
    """
    with hold_folder(prepared.out) as lock:
        todo = check_changed(prepared.out, prepared.plans, wanted.redo)
        keep_spec(prepared.out, wanted.spec)
        done = len(prepared.plans) - len(todo)
        kept = [plan for plan in prepared.plans if plan not in todo]
        shown.say(f"{len(prepared.plans)} runs in {prepared.out}, {done} done before, {prepared.slots} at once")
        for note in surroundings_notes(prepared.out, kept):
            shown.say(note)
        if todo:
            run_grid(todo, min(prepared.slots, len(todo)), lock, shown)
    return [read_run(run_folder(prepared.out, plan.row, plan.seed) / RUN_FILE) for plan in prepared.plans]


def device_faults(device: str) -> list[str]:
    """Why nothing can be trained on this device here."""
    if device != "cuda":
        return []
    import torch

    if torch.cuda.is_available():
        return []
    return ['device = "cuda", but torch sees no GPU here; look at nvidia-smi and torch’s CUDA build, or set "cpu"']


def make_data(experiment: Experiment, root: Path) -> None:
    """Run the file's `make_data` where there is no dataset yet. Raises PlanError when it fails."""
    if root.exists() or not experiment.spec.make_data:
        return
    words = [str(root) if word == "{data}" else word for word in shlex.split(experiment.spec.make_data)]
    command = [sys.executable, "-m", "tools.cli.main", *words[1:]] if words[:1] == ["mas"] else words
    try:
        subprocess.run(command, check=True, stdout=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        raise PlanError(f"make_data did not work: {error}") from error


def _chosen(experiment: Experiment, wanted: Wanted, faults: list[str]) -> list[PlannedRow]:
    chosen: list[PlannedRow] = []
    try:
        chosen = choose_rows(experiment, wanted.only)
        choose_rows(experiment, wanted.redo)
    except PlanError as error:
        faults.append(str(error))
    return chosen


def _job_faults(rows: Sequence[PlannedRow], data: DataUsed, root: Path) -> list[str]:
    from tools.experiment.simulated import clients_of_data
    from tools.simulate.preflight import data_faults, settings_faults

    clients = clients_of_data(data, root)
    found = [f"row {row.name!r}: {fault}" for row in rows for fault in settings_faults(row.job, len(clients))]
    return found + data_faults([row.job for row in rows], root, clients)


def _with_predictions(plans: Sequence[RunPlan], data: DataUsed, faults: list[str]) -> list[RunPlan]:
    """The plans with their predicted cost; the seed changes nothing of it."""
    specs: dict[str, JobSpec] = {plan.row: plan.spec for plan in plans}
    try:
        predicted = predict_all(specs, data.clients)
    except ValueError as error:
        faults += str(error).splitlines()
        return []
    return [msgspec.structs.replace(plan, predicted=predicted[plan.row]) for plan in plans]
