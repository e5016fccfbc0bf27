"""Runs benchmarks by name, and shows what they give as tables or as JSON."""

from __future__ import annotations

import importlib
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tools.bench.base import BenchError, Benchmark, Bound, Row, Unit

_PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"), (1e-9, "n"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one benchmark: rows, or the reason why there are none."""

    benchmark: Benchmark
    rows: tuple[Row, ...] = ()
    failure: str = ""


def load(name: str) -> Benchmark:
    """The benchmark of that name. Raises BenchError when a package that it measures is not installed."""
    try:
        module = importlib.import_module(f"tools.bench.{name}")
    except ImportError as error:
        raise BenchError(f"benchmark {name} needs more packages ({error}); pip install 'mas-edge[demo]'") from error
    found = module.BENCHMARK
    assert isinstance(found, Benchmark)
    return found


def measure(benchmark: Benchmark, quick: bool) -> Outcome:
    """Run it; its expected errors become the outcome's failure."""
    expected: tuple[type[Exception], ...] = (BenchError, OSError, *benchmark.faults)
    try:
        return Outcome(benchmark, tuple(benchmark.run(quick)))
    except expected as error:
        return Outcome(benchmark, failure=str(error))


def as_json(outcomes: Sequence[Outcome], quick: bool) -> dict[str, Any]:
    """Everything, in SI units."""
    return {
        "machine": machine(),
        "quick": quick,
        "benchmarks": {
            outcome.benchmark.name: {
                "measures": outcome.benchmark.measures,
                "failure": outcome.failure or None,
                "rows": [{**asdict(row), "holds": row.holds} for row in outcome.rows],
            }
            for outcome in outcomes
        },
    }


def machine() -> dict[str, Any]:
    """Where the figures come from; the load says whether others were at work."""
    return {
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "version": version("mas-edge"),
        "load_1min": os.getloadavg()[0],
    }


def show(outcome: Outcome, console: Console) -> None:
    """One table, or the failure."""
    name = outcome.benchmark.name
    if outcome.failure:
        console.print(Text(f"{name} could not be run: {outcome.failure}", "red"))
        return
    table = Table(
        title=f"{name}: {outcome.benchmark.measures}", title_justify="left", title_style="bold", box=SIMPLE_HEAD
    )
    table.add_column("figure", no_wrap=True)
    for column in ("median", "lowest", "highest", "runs", "bound"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in outcome.rows:
        cells = [quantity(value, row.unit) for value in (row.value, row.low, row.high)]
        table.add_row(row.figure, *cells, str(row.runs), _verdict(row))
    console.print(table)


def _verdict(row: Row) -> Text:
    if row.bound is None:
        return Text("")
    return Text(
        f"{_bound(row.bound, row.unit)} {'kept' if row.holds else 'missed'}", "green" if row.holds else "bold red"
    )


def _bound(bound: Bound, unit: Unit) -> str:
    return f"{'≤' if bound.kind == 'at_most' else '≥'} {quantity(bound.limit, unit)}"


def quantity(value: float, unit: Unit) -> str:
    """A figure for people: three digits, a prefix, the unit."""
    if unit == "share":
        return f"{100 * value:.3g} %"
    if unit == "ratio":
        return f"{value:.3g}"
    scale, prefix = next((each for each in _PREFIXES if abs(value) >= each[0]), (1.0, ""))
    amount = value / scale
    digits = f"{amount:.0f}" if abs(amount) >= 100 else f"{amount:.3g}"
    return f"{digits} {prefix}{unit}" if unit != "1/s" else f"{digits} {prefix}/s".replace(" /s", "/s")
