"""How long the exact split takes, as a function call and as the command that people type."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

from aggregator.splitting import split_tasks
from tools.bench.base import BenchError, Benchmark, Bound, Row, row, timed

_SPLITS = 4
_BOUNDS = {12: Bound(0.2), 16: Bound(2.0)}
_SIZES = (9, 12, 14, 16)
_COMMAND_SIZES = (12, 16)


def run(quick: bool) -> list[Row]:
    """Random affinities of both signs, the same in every run of a size."""
    runs = 2 if quick else 7
    sizes, command_sizes = ((9, 12), (9,)) if quick else (_SIZES, _COMMAND_SIZES)
    return [_solver(size, runs) for size in sizes] + _commands(command_sizes, runs)


def _solver(size: int, runs: int) -> Row:
    tasks, affinity = _problem(size)
    times_s = [timed(partial(split_tasks, tasks, affinity, _SPLITS)) for _ in range(runs)]
    return row(f"solver, {size} tasks", times_s, "s", _BOUNDS.get(size))


def _problem(size: int) -> tuple[list[str], list[list[float]]]:
    generator = random.Random(size)
    tasks = [f"task-{index}" for index in range(size)]
    return tasks, [[generator.gauss(0.0, 0.1) for _ in tasks] for _ in tasks]


def _commands(sizes: tuple[int, ...], runs: int) -> list[Row]:
    """`mas split`, start of Python included, turn by turn with the start of Python and numpy alone."""
    bare = partial(_call, [sys.executable, "-c", "import numpy"])
    rows, bare_s = [], []
    with tempfile.TemporaryDirectory(prefix="mas-bench-") as folder:
        for size in sizes:
            tasks, affinity = _problem(size)
            file = Path(folder) / f"{size}.json"
            file.write_text(json.dumps({"tasks": tasks, "affinity": affinity}))
            command = [sys.executable, "-m", "tools.cli.main", "split", str(file), "--max-splits", str(_SPLITS)]
            whole_s = []
            for _ in range(runs):
                whole_s.append(timed(partial(_call, [*command, "--json"])))
                bare_s.append(timed(bare))
            rows.append(row(f"mas split, {size} tasks", whole_s, "s"))
    return [*rows, row("python -c 'import numpy'", bare_s, "s")]


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"{' '.join(command[1:])} failed: {done.stderr.strip()[-500:]}")


BENCHMARK = Benchmark("split", f"the exact split into at most {_SPLITS} groups", run)
