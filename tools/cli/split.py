"""`mas split`: the best split of tasks for a measured affinity matrix."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer


def split_command(
    file: Annotated[str, typer.Argument(metavar="FILE", help='{"tasks": [..], "affinity": [[..]]}; "-": stdin')],
    max_splits: Annotated[int, typer.Option("--max-splits", min=1, help="At most so many groups.")] = 2,
    exactly: Annotated[bool, typer.Option("--exactly", help="Not fewer groups, even if they score better.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Split tasks into groups that help each other most (source row, target column; the diagonal is ignored)."""
    from aggregator.splitting import split_tasks

    tasks, affinity = _read(file)
    try:
        best = split_tasks(tasks, affinity, max_splits, exactly=exactly)
    except ValueError as error:
        _fail([str(error)])
    if as_json:
        print(json.dumps({"splits": best.splits, "score": best.score}))
    else:
        _show(tasks, affinity, best.splits, best.score)


def _read(file: str) -> tuple[list[str], list[list[float]]]:
    """The file's tasks and matrix; everything that is wrong goes to stderr at once, exit code 1."""
    from aggregator.splitting import validate_affinity

    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
        content = json.loads(text)
    except OSError as error:
        _fail([f"{file} cannot be read: {error.strerror or error}"])
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        _fail([f"{file} is not JSON: {error}"])
    if not isinstance(content, dict):
        _fail([f'{file} must hold an object {{"tasks": [..], "affinity": [[..]]}}'])
    faults = [f"{key} is missing" for key in ("tasks", "affinity") if key not in content]
    faults += [f"unknown key {key!r}" for key in content if key not in ("tasks", "affinity")]
    if "tasks" in content and "affinity" in content:
        faults += validate_affinity(content["tasks"], content["affinity"])
    if faults:
        _fail([f"{file}: {fault}" for fault in faults])
    return content["tasks"], content["affinity"]


def _fail(faults: list[str]) -> NoReturn:
    for fault in faults:
        typer.echo(f"mas split: {fault}", err=True)
    raise typer.Exit(1)


def _show(tasks: list[str], affinity: list[list[float]], splits: tuple[tuple[str, ...], ...], score: float) -> None:
    """A table of groups with each task's score."""
    import numpy as np
    from rich.console import Console
    from rich.table import Table

    from aggregator.splitting import task_scores

    groups = tuple(tuple(tasks.index(name) for name in group) for group in splits)
    scores = task_scores(np.asarray(affinity, np.float64), groups)
    table = Table("split", "task", "score", caption=f"score {score:.6g}")
    for number, group in enumerate(groups):
        for place, index in enumerate(group):
            table.add_row(f"split-{number}" if place == 0 else "", tasks[index], f"{scores[index]:.6g}")
    Console().print(table)
