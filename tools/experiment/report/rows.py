"""An experiment's runs as rows: one row per scheme and settings, its seeds side by side, rows of like set-up together.

A `Bench` holds rows that may be compared: the same data dealt to the same clients, tasks, network, picture size, mode,
device and precision. Within it the
base settings are those that most runs have; a row that departs from them (another R0, another K) is a variant.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from models.tasks import TASKS
from tools.experiment.run_record import DataUsed, Run

#: Schemes whose `max_splits` names the row, and what rows are called.
_COUNTED = {"mas": "MAS", "tag": "TAG", "hoa": "HOA", "split-from-scratch": "scratch", "random-split": "random split"}
_ORDER = (
    "one-by-one", "all-in-one", "gradnorm", "fedprox", "mas", "tag", "hoa", "split-from-scratch", "random-split",
    "given-split", "all-in-one-restart", "standalone", "every-group",
)  # fmt: skip
#: What a scheme is, and not a departure from the base settings.
_OWN = {
    "name", "scheme", "seed", "max_splits", "options", "tasks", "network", "size",
    "train.prox_mu", "train.loss_weighting", "train.gradnorm_alpha", "train.gradnorm_lr",
}  # fmt: skip
#: Options that say what a row's number of splits means already, or are settings that a row departs in.
_TOLD_ELSEWHERE = {"exactly", "affinity", "groups"}
_PUBLISHED_AFFINITY = "raw"
_SIGNS = {"merge_rounds": "R0", "clients_per_round": "K", "rounds": "R", "train.epochs": "E", "train.batch_size": "B"}

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Row:
    """Runs of one row by seed; `departures` are the settings in which it leaves the bench's base."""

    name: str
    scheme: str
    splits: int
    runs: tuple[Run, ...]
    departures: tuple[tuple[str, str], ...]

    @property
    def label(self) -> str:
        """The row as tables name it: `MAS-3`, `MAS-2, R0 = 50`."""
        base = f"{_COUNTED[self.scheme]}-{self.splits}" if self.scheme in _COUNTED else self.scheme
        options = [f"{key} {'|'.join(value) if isinstance(value, list) else value}" for key, value in self._options]
        apart = [f"{_SIGNS.get(key, key)} = {value}" for key, value in self.departures]
        return ", ".join([base, *options, *apart]).replace("lr_restarts = True", "rate restarted")

    @property
    def _options(self) -> list[tuple[str, Any]]:
        options = self.runs[0].spec.options
        # Groups given by name are what the row is; a number of groups is its number of splits.
        return [(k, v) for k, v in options.items() if k not in _TOLD_ELSEWHERE or isinstance(v, list)]

    def only_departs_in(self, setting: str) -> bool:
        """Whether it leaves the base in `setting` alone (a shorter merge phase may have fewer rounds to probe)."""
        return {key for key, _ in self.departures} - {"affinity_rounds"} == {setting}

    @property
    def done(self) -> dict[int, Run]:
        """The runs that ended well, by seed."""
        return {run.seed: run for run in self.runs if run.state == "done" and run.record is not None}

    @property
    def losses(self) -> dict[int, float]:
        """Total held-out loss by seed, where every task has one."""
        found = {seed: total_loss(run) for seed, run in self.done.items()}
        return {seed: value for seed, value in found.items() if value is not None}

    def by_seed(self, pick: Callable[[Run], float | None]) -> dict[int, float]:
        """A figure of every run that ended well, where it is known."""
        found = {seed: pick(run) for seed, run in self.done.items()}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Bench:
    """Rows that may be compared with one another; `base` holds the settings most of their runs share."""

    tasks: tuple[str, ...]
    mode: str
    network: str
    size: int
    base: Mapping[str, Any]
    rows: tuple[Row, ...]

    @property
    def seeds(self) -> tuple[int, ...]:
        """Every seed of any row."""
        return tuple(sorted({run.seed for row in self.rows for run in row.runs}))

    @property
    def label(self) -> str:
        """Tasks and set-up in one line."""
        return f"{short(self.tasks)}, {self.network} at {self.size} x {self.size}, {self.mode}"

    def row(self, scheme: str, splits: int = 0) -> Row | None:
        """The row of a scheme at the base settings; with `splits` of those that are counted."""
        return next((r for r in self.rows if (r.scheme, r.splits) == (scheme, splits) and not r.departures), None)

    def rows_of(self, scheme: str) -> list[Row]:
        """A scheme's rows at the base settings, fewest splits first."""
        return sorted((r for r in self.rows if r.scheme == scheme and not r.departures), key=lambda r: r.splits)

    def variants(self, scheme: str, setting: str) -> list[Row]:
        """A scheme's rows that depart from the base in `setting` alone."""
        return [row for row in self.rows if row.scheme == scheme and row.only_departs_in(setting)]


def total_loss(run: Run) -> float | None:
    """Plain sum of the final held-out losses."""
    return None if run.record is None else run.record.total_loss


def final_groups(run: Run) -> Groups:
    """The groups whose models are deployed or, where none is, all that were trained last; each once."""
    if run.record is None:
        return ()
    last = max((split.last_round for split in run.record.splits), default=0)
    served = [split for split in run.record.splits if split.final]
    return tuple(dict.fromkeys(s.tasks for s in served or run.record.splits if s.last_round == last or served))


def short(tasks: Sequence[str]) -> str:
    """Tasks by their letters; one that is not known here by its name in brackets."""
    return "".join(TASKS[task].letter if task in TASKS else f"[{task}]" for task in tasks)


def short_groups(groups: Iterable[Sequence[str]]) -> str:
    """A partition on a narrow space: `sdn|kt`."""
    return "|".join(short(group) for group in groups)


def benches(runs: Sequence[Run]) -> list[Bench]:
    """The runs' benches, the one with most runs first."""
    kinds: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        spec = run.spec
        kind = (spec.tasks, run.mode, spec.network, spec.size, run.device, run.precision, *_data(run.data))
        kinds.setdefault(kind, []).append(run)
    found = [_bench(members) for members in kinds.values()]
    return sorted(found, key=lambda bench: -sum(len(row.runs) for row in bench.rows))


def _data(used: DataUsed) -> tuple[object, ...]:
    """What tells datasets apart: the manifest, or where there is none the place; and who holds what of it."""
    return used.manifest_sha256 or used.root, used.data_format, used.clients


def _bench(runs: Sequence[Run]) -> Bench:
    settings = {id(run): _flat(msgspec.to_builtins(run.spec)) for run in runs}
    names = list(dict.fromkeys(name for flat in settings.values() for name in flat if name not in _OWN))
    base = {name: _most_common([flat.get(name) for flat in settings.values()]) for name in names}
    members: dict[str, list[Run]] = {}
    for run in runs:
        members.setdefault(run.row, []).append(run)
    rows = [_row(name, found, settings[id(found[0])], base) for name, found in members.items()]
    spec = runs[0].spec
    return Bench(spec.tasks, runs[0].mode, spec.network, spec.size, base, tuple(sorted(rows, key=_place)))


def _row(name: str, runs: Sequence[Run], settings: Mapping[str, Any], base: Mapping[str, Any]) -> Row:
    scheme = runs[0].scheme
    return Row(
        name=name,
        scheme=scheme,
        splits=_splits(runs[0]) if scheme in _COUNTED else 0,
        runs=tuple(sorted(runs, key=lambda run: run.seed)),
        departures=tuple(
            (key, str(settings.get(key)))
            for key, value in base.items()
            if settings.get(key) != value and not (scheme == "all-in-one-restart" and key == "lr_restarts")
        )
        + _affinity_apart(runs[0]),
    )


def _splits(run: Run) -> int:
    """How many groups a row stands for; a random split may be told in its options."""
    asked = run.spec.options.get("groups")
    return asked if isinstance(asked, int) and asked else run.spec.max_splits


def _affinity_apart(run: Run) -> tuple[tuple[str, str], ...]:
    asked = run.spec.options.get("affinity", _PUBLISHED_AFFINITY)
    return () if asked == _PUBLISHED_AFFINITY else (("affinity", str(asked)),)


def _place(row: Row) -> tuple[bool, int, int, list[tuple[str, float, str]], str]:
    known = _ORDER.index(row.scheme) if row.scheme in _ORDER else len(_ORDER)
    apart = [(key, float(value) if value.isdecimal() else 0.0, value) for key, value in row.departures]
    return bool(row.departures), known, row.splits, apart, row.name


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping) and name != "options":
            found |= _flat(value, f"{prefix}{name}.")
        else:
            found[f"{prefix}{name}"] = value
    return found


def _most_common(values: Sequence[Any]) -> Any:
    """The value most runs have; of equally common ones that which comes first."""
    counts = Counter(repr(value) for value in values)
    most = max(counts.values(), default=0)
    return next((value for value in values if counts[repr(value)] == most), None)
