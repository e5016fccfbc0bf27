"""`mas bench`: speed and size of the parts."""

from __future__ import annotations

import typer


def bench_command(name: str = typer.Argument("all", help="Which benchmark, or all.")) -> None:
    """Measure the parts on this machine."""
    from tools.bench import run_bench

    run_bench(name)
