"""`mas experiment`: grids of schemes, seeds and settings."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from tools.cli.errors import fail, failing_on

if TYPE_CHECKING:
    from tools.experiment.run import Prepared
    from tools.experiment.run_record import Run

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Run grids of schemes, seeds and settings, and report what they show."""


@app.command()
def run(
    spec: Path = typer.Argument(..., help="The experiment (TOML); docs/results/protocol.toml is one."),
    out: Path = typer.Option(None, "--out", "-o", help="Folder of its runs; mas-experiment-NAME without it."),
    data: Path = typer.Option(None, "--data", help="The dataset, instead of the file's; demo-pack is ours."),
    jobs: int = typer.Option(0, "--jobs", "-j", min=0, help="Runs at once; 0 takes the file's, or one per core."),
    only: list[str] = typer.Option([], "--only", help="Only this row; may be given several times."),
    seed: list[int] = typer.Option([], "--seed", min=0, help="This seed instead of the file's; several times too."),
    redo: list[str] = typer.Option([], "--redo", help="Run this row again although it is done; several times too."),
    as_json: bool = typer.Option(False, "--json", help="Print what came of every run as JSON."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Check everything, show the runs and their cost, and end."),
) -> None:
    """Train every row with every seed. What is done already is skipped, so a grid goes on after any interruption."""
    from rich.console import Console

    from models.config import ConfigError
    from tools.experiment.folder import FolderTakenError
    from tools.experiment.live import Display
    from tools.experiment.run import Wanted, prepare, run_experiment
    from tools.experiment.run_record import RunRecordError
    from tools.experiment.runner import DiskFullError

    # The children are ended by leaving a context, so an ending must come as an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted = Wanted(spec, out, data, jobs, tuple(only), tuple(seed), tuple(redo))
    try:
        prepared = prepare(wanted, make=not dry_run)
    except ConfigError as error:
        raise fail(str(error), 2) from error
    if dry_run:
        _show_plan(prepared, as_json)
        return
    with failing_on(FolderTakenError, RunRecordError, DiskFullError, OSError):
        with Display(Console(stderr=True)) as display:
            runs = run_experiment(prepared, wanted, display)
        _conclude(runs, prepared.out, as_json)


@app.command()
def report(
    folder: Path = typer.Argument(..., help="The folder of an experiment's runs."),
    as_json: bool = typer.Option(False, "--json", help="Print report.json instead of where the files are."),
) -> None:
    """Write report.html, report.md and report.json of what has ended so far, beside the runs."""
    from tools.experiment.report.document import NothingToReportError
    from tools.experiment.report.write import write_report
    from tools.experiment.run_record import RunRecordError

    with failing_on(NothingToReportError, RunRecordError, OSError):
        files = write_report(folder)
        typer.echo(files.json.read_text() if as_json else f"{files.html}\n{files.markdown}\n{files.json}")


def _show_plan(prepared: Prepared, as_json: bool) -> None:
    import msgspec

    if as_json:
        typer.echo(msgspec.json.encode(prepared.plans).decode())
        return
    for plan in prepared.plans:
        cost = f"{plan.predicted.flops.total:.3g} FLOPs" if plan.predicted else "cost unknown"
        typer.echo(f"{plan.row}, seed {plan.seed}: {plan.spec.scheme}, {plan.spec.rounds} rounds, {cost}")
        typer.echo(f"    {plan.command}")


def _conclude(runs: list[Run], out: Path, as_json: bool) -> None:
    """What came of all runs; exit code 1 when one of them failed."""
    import msgspec

    from tools.experiment.live import run_line

    if as_json:
        rows = [
            {
                "row": run.row,
                "seed": run.seed,
                "scheme": run.scheme,
                "state": run.state,
                "reason": run.reason,
                "total_loss": run.record.total_loss if run.record else None,
                "flops": run.flops.total,
                "energy_j": run.energy.energy_j,
                "energy_state": run.energy.state,
                "wall_s": run.wall_s,
                "command": run.command,
            }
            for run in runs
        ]
        typer.echo(msgspec.json.encode(rows).decode())
    failed = [run for run in runs if run.state == "failed"]
    done = sum(run.state == "done" for run in runs)
    diverged = len(runs) - done - len(failed)
    typer.echo(f"{done} done, {diverged} diverged, {len(failed)} failed, of {len(runs)} runs in {out}", err=True)
    if failed:
        lines = "\n".join(f"  - {run_line(run)}" for run in failed)
        raise fail(f"these runs failed; the same command runs them again:\n{lines}")
