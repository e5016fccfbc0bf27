"""Every run of an experiment, with all that its process needs to know: one `RunPlan` each, in the order they run."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import subprocess
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from edge_agent.datasets.layout import MANIFEST, read_manifest
from edge_agent.power.base import NoMeter
from models.wire.job import JobSpec
from tools.demo.plan import PACK, AgentPlan, PlanError, deal
from tools.experiment.run_record import ClientData, DataUsed, Mode, Predicted, Setting
from tools.experiment.spec import DEMO_PACK, Experiment, ExperimentSpec, PlannedRow
from tools.simulate.clients import capabilities, clients_of

_PACKAGES = ("mas-edge", "torch", "numpy", "msgspec")


class RunPlan(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One run: what the record will say of it, and where its process finds its data.

    `slots` runs share the memory of the machine.
    """

    experiment: str
    row: str
    mode: Mode
    question_tags: tuple[str, ...]
    seed: int
    settings: dict[str, Setting]
    spec: JobSpec
    device: str
    precision: str
    threads: int
    watts_per_core: float
    root: str
    data: DataUsed
    versions: dict[str, str]
    machine: str
    command: str
    out: str
    predicted: Predicted | None = None
    slots: int = 1


def data_root(experiment: Experiment, given: Path | None) -> Path:
    """Where the pictures are: what the command line says, else the file, whose paths begin where it lies.

    Raises PlanError when neither says.
    """
    if given is not None:
        return PACK if str(given) == DEMO_PACK else given
    named = experiment.spec.data
    if not named:
        raise PlanError(f"{experiment.path} names no data; add a line `data = ...` or give --data")
    return PACK if named == DEMO_PACK else Path(os.path.relpath(experiment.path.parent / named))


def read_data(root: Path, spec: ExperimentSpec) -> DataUsed:
    """The dataset at `root` dealt to clients. Raises PlanError, DatasetError, InventoryError."""
    manifest = read_manifest(root)
    if manifest is None and not (spec.train and spec.test):
        raise PlanError(f"{root} has no {MANIFEST}; name its buildings with `train = [...]` and `test = [...]`")
    train = spec.train or tuple(manifest.buildings.train if manifest else ())
    test = spec.test or tuple(manifest.buildings.test if manifest else ())
    both = [name for name in train if name in test]
    if both:
        raise PlanError(f"the buildings {', '.join(both)} are for training and for testing; keep them apart")
    if spec.clients > len(train):
        raise PlanError(f"clients = {spec.clients}, but {root} has {len(train)} training buildings, one each at least")
    dealt = deal(train, test, spec.clients or len(train))
    held = tuple(_held(root, plan, spec.data_format) for plan in dealt)
    return DataUsed(
        root=DEMO_PACK if root == PACK else str(root),
        data_format=spec.data_format,
        manifest_sha256=hashlib.sha256((root / MANIFEST).read_bytes()).hexdigest() if manifest else "",
        clients=held,
        train_images=sum(client.train_images for client in held),
        test_images=sum(client.test_images for client in held),
    )


def _held(root: Path, plan: AgentPlan, data_format: str) -> ClientData:
    (client,) = clients_of(root, [plan], data_format)
    found = capabilities(client, NoMeter("nothing is trained yet"))
    return ClientData(plan.agent, plan.train, plan.test, found.train_samples, found.test_samples, found.val_samples)


def choose_rows(experiment: Experiment, only: Sequence[str]) -> list[PlannedRow]:
    """The rows of those names, or all. Raises PlanError naming those that are not known."""
    names = [row.name for row in experiment.rows]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise PlanError(f"no row is called {', '.join(unknown)}; there are {', '.join(names)}")
    return [row for row in experiment.rows if not only or row.name in only]


def plan_runs(
    experiment: Experiment,
    rows: Sequence[PlannedRow],
    seeds: Sequence[int],
    data: DataUsed,
    root: Path,
    out: Path,
    data_given: Path | None,
) -> list[RunPlan]:
    """Every run, seed by seed, so that a grid that is ended early has whole tables for its first seeds."""
    found = []
    wanted = {row.name: tuple(seeds) or row.seeds for row in rows}
    versions, machine = versions_here(), machine_here()
    for seed in dict.fromkeys(seed for chosen in wanted.values() for seed in chosen):
        for row in rows:
            if seed not in wanted[row.name]:
                continue
            found.append(
                RunPlan(
                    experiment=experiment.spec.name,
                    row=row.name,
                    mode=row.mode,
                    question_tags=row.questions,
                    seed=seed,
                    settings=row.settings,
                    spec=msgspec.structs.replace(row.job, seed=seed),
                    device=experiment.spec.device,
                    precision=experiment.spec.precision,
                    threads=experiment.spec.threads,
                    watts_per_core=experiment.spec.watts_per_core,
                    root=str(root.resolve()),
                    data=data,
                    versions=versions,
                    machine=machine,
                    command=repeat_command(experiment.path, row.name, seed, data_given),
                    out=str(out.resolve()),
                )
            )
    return found


def repeat_command(spec: Path, row: str, seed: int, data_given: Path | None) -> str:
    """One command that does this run alone and again, in a folder of its own."""
    data = ["--data", str(data_given)] if data_given is not None else []
    words = ["mas", "experiment", "run", str(spec), *data, "--only", row, "--seed", str(seed)]
    return shlex.join([*words, "--out", f"repeat-{row}-seed{seed}"])


def versions_here() -> dict[str, str]:
    """Python, the packages that make the figures, and the commit where this is a checkout."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    commit = _commit()
    return {**found, "git": commit} if commit else found


def _commit() -> str:
    """The checked-out commit, with + where files differ from it; empty without git or a checkout."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    try:
        said = [
            subprocess.run(["git", "-C", str(here), *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        ]
    except (OSError, subprocess.CalledProcessError):
        return ""
    return said[0] + ("+" if said[1] else "")


def machine_here() -> str:
    """Cores and the processor's name."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}"
