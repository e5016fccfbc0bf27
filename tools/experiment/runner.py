"""Runs a grid: so many children at once, each a process of its own; what one of them does leaves the others alone."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import msgspec

from tools.experiment.child import DISK_FULL, Said, disk_is_full, failed_run
from tools.experiment.plan import RunPlan
from tools.experiment.progress import Board, board_of
from tools.experiment.run_record import RUN_FILE, Run, read_run, run_folder, write_json, write_run

PLAN_FILE = "plan.json"
LOG_FILE = "run.log"
_LOOK_S = 0.5
_STOP_S = 15.0
_TAIL_BYTES = 16 * 1024


class DiskFullError(Exception):
    """The disk is full and the grid has stopped; what was done is kept."""


class Shown(Protocol):
    """Where people see how far the grid is."""

    def update(self, board: Board, now_s: float) -> None:
        """The board changed, or time went by."""

    def say(self, text: str) -> None:
        """Something people should know."""

    def ended(self, run: Run) -> None:
        """A run has ended and is recorded."""


@dataclass(frozen=True, slots=True)
class _Child:
    index: int
    plan: RunPlan
    process: subprocess.Popen[bytes]
    log: Path
    began_s: float
    started_at: float


#: What a child's reader thread tells: its index, and how far it is or (None) that it has closed its output.
_News = tuple[int, Said | None]


@dataclass(slots=True)
class _Grid:
    """State of one grid under way; lives inside `run_grid`."""

    plans: Sequence[RunPlan]
    board: Board
    lock: int
    running: dict[int, _Child] = field(default_factory=dict)
    news: queue.SimpleQueue[_News] = field(default_factory=queue.SimpleQueue)


def run_grid(plans: Sequence[RunPlan], slots: int, lock: int, shown: Shown) -> list[Run]:
    """Every plan once, `slots` at a time, in their order; the records of all.

    A run that fails is recorded and the others go on. However this is left, no child is left behind.
    Raises DiskFullError, OSError.
    """
    grid = _Grid(plans, board_of(plans, slots), lock)
    ended: list[Run] = []
    waiting = list(range(len(plans)))
    try:
        with _children(grid):
            while waiting or grid.running:
                while waiting and len(grid.running) < slots:
                    _start(grid, waiting.pop(0))
                shown.update(grid.board, time.monotonic())
                run = _listen(grid)
                if run is not None:
                    ended.append(run)
                    shown.ended(run)
            shown.update(grid.board, time.monotonic())
    except OSError as error:
        if disk_is_full(error):
            raise _full(plans[0]) from error
        raise
    return ended


def _start(grid: _Grid, index: int) -> None:
    plan = grid.plans[index]
    folder = run_folder(Path(plan.out), plan.row, plan.seed)
    for unfinished in folder.glob(".*.json-*"):
        unfinished.unlink()  # of a process that was killed as it wrote
    write_json(folder / PLAN_FILE, plan)
    log = folder / LOG_FILE
    threads = str(plan.threads)
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tools.experiment.child", str(folder / PLAN_FILE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            env={**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads},
            pass_fds=(grid.lock,),
            start_new_session=True,  # Ctrl-C reaches the runner alone, which then ends them
        )
    child = _Child(index, plan, process, log, time.monotonic(), time.time())
    grid.running[index] = child
    grid.board = grid.board.with_line(index, standing="running", began_s=child.began_s)
    threading.Thread(target=_read, args=(child, grid.news), daemon=True).start()


def _read(child: _Child, news: queue.SimpleQueue[_News]) -> None:
    assert child.process.stdout is not None
    try:
        for line in child.process.stdout:
            with suppress(msgspec.DecodeError):  # a line that is no message says nothing of how far the run is
                news.put((child.index, msgspec.json.decode(line, type=Said)))
    finally:
        news.put((child.index, None))


def _listen(grid: _Grid) -> Run | None:
    """Take the next thing a child says; the record of a run that has ended with it."""
    try:
        index, said = grid.news.get(timeout=_LOOK_S)
    except queue.Empty:
        return None
    if said is not None:
        grid.board = grid.board.with_line(index, rounds=said.rounds, text=said.text)
        return None
    child = grid.running[index]
    code = child.process.wait()
    del grid.running[index]
    _close(child)
    run = _record_of(child, code)
    grid.board = grid.board.with_line(index, standing=run.state, took_s=time.monotonic() - child.began_s)
    return run


def _record_of(child: _Child, code: int) -> Run:
    """What the run wrote; where it could not, a record that says why. Raises DiskFullError, OSError."""
    plan = child.plan
    if code == DISK_FULL:
        raise _full(plan)
    if code == 0:
        return read_run(run_folder(Path(plan.out), plan.row, plan.seed) / RUN_FILE)
    reason = f"{_how(code)}; {_last_line(child.log)} (all of it in {child.log})"
    run = failed_run(plan, reason, wall_s=time.monotonic() - child.began_s, started_at=child.started_at)
    write_run(Path(plan.out), run)
    return run


def _how(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    return f"its process was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it said nothing"


def _full(plan: RunPlan) -> DiskFullError:
    return DiskFullError(
        f"the disk of {plan.out} is full: the grid has stopped, what is recorded is whole. "
        "Free some space and give the same command again; it goes on where it stopped"
    )


@contextmanager
def _children(grid: _Grid) -> Iterator[None]:
    """However the block is left, every child is gone afterwards."""
    try:
        yield
    finally:
        for child in grid.running.values():
            _end_input(child)
            child.process.terminate()
        deadline = time.monotonic() + _STOP_S
        for child in grid.running.values():
            try:
                child.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                child.process.kill()
                child.process.wait()
            _close(child)


def _end_input(child: _Child) -> None:
    if child.process.stdin is not None:
        child.process.stdin.close()


def _close(child: _Child) -> None:
    _end_input(child)
    if child.process.stdout is not None:
        child.process.stdout.close()
