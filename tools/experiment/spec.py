"""SPEC.toml: what an experiment compares. Read whole and checked whole, so that no fault is left for the second night.

name = "protocol"
data = "../scenes"            # a dataset; "demo-pack" is the one that comes with the package
seeds = [0, 1, 2]

[job]                         # what all rows share: the fields of JobSpec
tasks = "sdnkt"
rounds = 40

[[row]]
name = "mas-{max_splits}"     # {key} is the value of that key of the sweep
scheme = "mas"
questions = ["Q1", "Q2"]
set.probe_every = 8           # this row's own settings, by dotted key
sweep.max_splits = [2, 3, 4]  # a row for each value; several keys: for each combination
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from msgspec import Meta

from edge_agent.config import PowerConfig
from models.config import ConfigError, convert, load_toml
from models.tasks import UnknownTasksError, parse_tasks
from models.wire.job import Count, JobSpec, Name
from tools.experiment.run_record import Mode, Setting

Question = Literal["Q1", "Q2", "Q3", "Q4", "Q5", "Q6", "Q7", "Q8"]
Seeds = Annotated[tuple[Annotated[int, Meta(ge=0, lt=2**31)], ...], Meta(min_length=1)]
Precision = Literal["fp32", "bf16"]
T = TypeVar("T", bound=msgspec.Struct)

#: The dataset of the demo, by a name that needs no path.
DEMO_PACK = "demo-pack"
_GIVEN_BY_ROW = ("name", "scheme", "seed")
_NOT_IN_A_NAME = re.compile(r"[^a-z0-9_.]+")


class RowSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One `[[row]]`. `seeds` and `mode` are the experiment's where they are not given."""

    name: str
    scheme: str
    questions: tuple[Question, ...] = ()
    set: dict[str, Any] = {}
    sweep: dict[str, Any] = {}
    seeds: Seeds | None = None
    mode: Mode | None = None


class ExperimentSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. `clients` 0: one per training building; `jobs` runs at once, 0: one per core, `threads` each.

    `note` says what a reader of the report must know of how its settings were chosen.
    `train` and `test` name buildings; without them the dataset's own mas-dataset.json says which are which.
    """

    name: Name
    seeds: Seeds
    row: Annotated[tuple[dict[str, Any], ...], Meta(min_length=1)]
    job: dict[str, Any] = {}
    data: str = ""
    data_format: str = "taskonomy"
    make_data: str = ""
    note: str = ""
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    clients: Annotated[int, Meta(ge=0)] = 0
    mode: Mode = "simulate"
    device: Literal["cpu", "cuda"] = "cpu"
    precision: Precision = "fp32"
    jobs: Annotated[int, Meta(ge=0)] = 0
    threads: Count = 1
    watts_per_core: Annotated[float, Meta(gt=0)] = PowerConfig().watts_per_core


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """One row with its sweep resolved. `settings` are its own, by dotted key; the seed in `job` is a placeholder."""

    name: str
    mode: Mode
    questions: tuple[str, ...]
    settings: dict[str, Setting]
    job: JobSpec
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A file that can be run: its settings, and every row in the file's order."""

    spec: ExperimentSpec
    path: Path
    rows: tuple[PlannedRow, ...]


def load_experiment(path: Path) -> tuple[Experiment, list[str]]:
    """The experiment of a file, and what is wrong with rows that are left out of it.

    Whether its jobs can be run at all is not asked here.

    Raises ConfigError where the file as a whole says too little to go on.
    """
    spec = load_toml(path, ExperimentSpec)
    faults = [f"job.{key} is given by the rows; remove it from [job]" for key in _GIVEN_BY_ROW if key in spec.job]
    rows: list[PlannedRow] = []
    for number, plain in enumerate(spec.row, start=1):
        label = f"row {plain.get('name', f'number {number}')!r}"
        row = _collect(plain, RowSpec, label, faults)
        if row is not None:
            rows += _rows(spec, row, label, faults)
    names = [row.name for row in rows]
    faults += [
        f"row {name!r} is given {names.count(name)} times; give each another name"
        for name in dict.fromkeys(names)
        if names.count(name) > 1
    ]
    return Experiment(spec, path, tuple(rows)), faults


def _rows(spec: ExperimentSpec, row: RowSpec, label: str, faults: list[str]) -> Iterator[PlannedRow]:
    own = dict(flat(row.set))
    sweep = dict(flat(row.sweep))
    bad = [key for key, values in sweep.items() if not isinstance(values, list) or not values]
    bad_text = [f"{label}: sweep.{key} must be a list of the values to try" for key in bad]
    bad_text += [f"{label}: {key} is in set and in sweep; keep one" for key in sweep if key in own]
    bad_text += [f"{label}: {key} is given by the row itself" for key in (*own, *sweep) if key in _GIVEN_BY_ROW]
    if bad_text:
        faults += bad_text
        return
    for values in itertools.product(*sweep.values()):
        chosen = dict(zip(sweep, values, strict=True))
        planned = _planned(spec, row, {**own, **chosen}, _name(row.name, chosen), faults)
        if planned is not None:
            yield planned


def _planned(
    spec: ExperimentSpec, row: RowSpec, settings: dict[str, Any], name: str, faults: list[str]
) -> PlannedRow | None:
    label = f"row {name!r}"
    plain = _nested({**dict(flat(spec.job)), **settings})
    try:
        if isinstance(plain.get("tasks"), (str, list)):
            plain["tasks"] = list(parse_tasks(plain["tasks"]))
    except UnknownTasksError as error:
        faults += [f"{label}: {fault}" for fault in error.faults]
        return None
    job = _collect({**plain, "name": name, "scheme": row.scheme, "seed": 0}, JobSpec, label, faults)
    if job is None:
        return None
    return PlannedRow(name, row.mode or spec.mode, row.questions, settings, job, row.seeds or spec.seeds)


def _collect(plain: Mapping[str, Any], kind: type[T], label: str, faults: list[str]) -> T | None:
    """`plain` as `kind`, or None with its faults added."""
    try:
        return convert(plain, kind, label)
    except ConfigError as error:
        faults += [f"{label}: {fault}" for fault in error.faults]
        return None


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values of nested tables; a key that was quoted with its dots comes out the same."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, last = key.split(".")
        table = nested
        for parent in parents:
            below = table.setdefault(parent, {})
            # A value where a table belongs stays: the conversion names it.
            table = below if isinstance(below, dict) else {}
        table[last] = value
    return nested


def _name(pattern: str, chosen: Mapping[str, Any]) -> str:
    """A row's name with the values of its sweep; what the pattern does not mention is appended."""
    name = pattern
    for key, value in chosen.items():
        text = _NOT_IN_A_NAME.sub("-", str(value).lower()).strip("-")
        mark = "{" + key + "}"
        name = name.replace(mark, text) if mark in name else f"{name}-{key.rpartition('.')[2]}-{text}"
    return name
