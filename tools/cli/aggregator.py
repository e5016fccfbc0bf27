"""`mas aggregator run`."""

from __future__ import annotations

from pathlib import Path

import typer

from tools.cli.errors import check_broker, load_config

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """The lab server: it coordinates jobs, averages updates, splits tasks and exports bundles."""


@app.command()
def run(
    config: Path = typer.Option(..., "--config", "-c", help="Settings (TOML); see systemd/aggregator.toml."),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log more."),
) -> None:
    """Run the aggregator until SIGTERM or Ctrl-C; it resumes where it was."""
    from aggregator.config import AggregatorConfig

    settings = load_config(config, AggregatorConfig)
    check_broker(settings.broker)
    from aggregator.service import main as serve

    raise typer.Exit(serve(settings, verbose))
