"""`mas data scenes|photos|check`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from tools.cli.errors import fail, failing_on

app = typer.Typer(no_args_is_help=True)


@app.callback()
def main() -> None:
    """Datasets in Taskonomy's layout: render rooms, cut photographs, check what is there."""


@app.command()
def scenes(
    out: Annotated[Path, typer.Argument(help="Folder to write; one that an earlier run left unfinished is completed.")],
    buildings: Annotated[int, typer.Option(help="Buildings to train on, one for each client.")] = 12,
    test_buildings: Annotated[int, typer.Option(help="Buildings held out for evaluation.")] = 3,
    points: Annotated[int, typer.Option(help="Points in each building.")] = 18,
    test_points: Annotated[int, typer.Option(help="Points in each test building.")] = 12,
    views: Annotated[int, typer.Option(help="Pictures of each point, from different places.")] = 2,
    size: Annotated[int, typer.Option(help="Width and height in pixels.")] = 64,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    tasks: Annotated[
        str, typer.Option(help="Only the labels of these tasks, as letters (sdnkt) or names; by default all.")
    ] = "",
    catalogue: Annotated[
        Path | None, typer.Option(help="Folder with furniture sets (*.sh3f); by default Debian's are fetched.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes; they do not change the result.")] = 2,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Render furnished rooms with Taskonomy's labels: the paper's nine, kind of room, classes present, distance."""
    from tools.scenes.catalogue import CatalogueError
    from tools.scenes.fetch import default_cache, fetch_catalogue
    from tools.scenes.files import FolderError
    from tools.scenes.job import Plan

    plan = Plan(buildings, test_buildings, points, test_points, views, size, seed, tasks)
    if faults := plan.faults():
        raise fail("; ".join(faults), 2)
    with failing_on(CatalogueError, FolderError, OSError), _interruptible(out):
        from tools.scenes.dataset import total_views, write_scenes

        folder = catalogue if catalogue is not None else fetch_catalogue(default_cache())
        with _bar("rendering", total_views(plan), quiet=as_json) as advance:
            summary = write_scenes(plan, folder, out, workers=workers, progress=advance)
    if as_json:
        _print_json(
            root=str(out),
            images=summary.written + summary.kept,
            written=summary.written,
            buildings=buildings,
            test_buildings=test_buildings,
            size=size,
            seed=seed,
            wall_s=round(summary.wall_s, 3),
            images_per_s=round(summary.written / summary.render_s, 2) if summary.written else None,
            notes=list(summary.notes),
        )
        return
    typer.echo(f"{summary.written} views written, {summary.kept} kept, {summary.wall_s:.0f} s: {out}")
    for note in summary.notes:
        typer.echo(f"left out: {note}", err=True)


@app.command()
def photos(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="Folder with photographs, searched with its subfolders.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to write.")],
    size: Annotated[int, typer.Option(help="Width and height of the crops in pixels.")] = 64,
    clients: Annotated[int, typer.Option(help="Clients to deal the photographs to; test buildings come on top.")] = 8,
    seed: Annotated[int, typer.Option(help="The same seed gives the same files.")] = 0,
    crops: Annotated[int, typer.Option(help="Crops of each photograph; 0 makes about 48 images for each client.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print a summary as JSON.")] = False,
) -> None:
    """Cut photographs into a dataset of tasks that need no labels: a, t, k, o, v."""
    from edge_agent.datasets.layout import DatasetError
    from tools.photos import PhotoPlan, write_photos
    from tools.scenes.files import FolderError

    plan = PhotoPlan(size, clients, seed, crops)
    if faults := plan.faults():
        raise fail("; ".join(faults), 2)
    files = 0
    wrong = failing_on(FolderError, DatasetError, OSError)
    with wrong, _interruptible(out), _bar("reading, cutting", 0, quiet=as_json) as advance:

        def scanned(_: int, found: int) -> None:
            nonlocal files
            files = found
            advance(1, 2 * found)

        summary = write_photos(
            plan, folder, out, scanned=scanned, progress=lambda _, usable: advance(1, files + usable)
        )
    if as_json:
        _print_json(
            root=str(out),
            photos=summary.photos,
            images=summary.images,
            buildings=summary.buildings,
            skipped=list(summary.skipped),
            wall_s=round(summary.wall_s, 3),
        )
        return
    for reason in summary.skipped:
        typer.echo(f"skipped {reason}", err=True)
    typer.echo(f"{summary.photos} photographs, {summary.images} images in {len(summary.buildings)} buildings: {out}")


@app.command()
def check(
    root: Annotated[Path, typer.Argument(help="Dataset in Taskonomy's layout, or in --format.")],
    tasks: Annotated[str, typer.Option(help="Tasks that have to be there, as letters (sdnkt) or names.")] = "",
    batch_size: Annotated[
        int, typer.Option(min=0, help="Name buildings with fewer pictures to train on than this; 0 names none.")
    ] = 0,
    buildings: Annotated[
        str, typer.Option(help="Only these buildings, with commas between them, and only what --tasks need.")
    ] = "",
    quick: Annotated[bool, typer.Option("--quick", help="Compare names, and open one view of each building.")] = False,
    data_format: Annotated[str, typer.Option("--format", help="How the dataset is stored.")] = "taskonomy",
    as_json: Annotated[bool, typer.Option("--json", help="Print the faults as JSON.")] = False,
) -> None:
    """Report everything that is wrong with a dataset; exit code 1 if anything is."""
    from edge_agent.datasets.check import check_dataset
    from models.plugins import PluginError
    from models.tasks import UnknownTasksError, parse_tasks

    with failing_on(PluginError):
        try:
            names = parse_tasks(tasks) if tasks else ()
        except UnknownTasksError as error:
            raise fail("; ".join(error.faults), 2) from None
        with _bar("checking", 0, quiet=as_json) as advance:
            faults = check_dataset(
                root,
                names,
                buildings=[name.strip() for name in buildings.split(",") if name.strip()] or None,
                batch_size=batch_size,
                thorough=not quick,
                data_format=data_format,
                progress=lambda done, total: advance(1, total),
            )
    if as_json:
        _print_json(
            root=str(root),
            ok=not faults,
            faults=[{"path": str(fault.path), "reason": fault.reason} for fault in faults],
        )
    else:
        for fault in faults:
            typer.echo(str(fault))
        typer.echo(f"{len(faults)} faults" if faults else "no faults", err=bool(faults))
    if faults:
        raise typer.Exit(1)


def _print_json(**values: object) -> None:
    import json

    typer.echo(json.dumps(values))


@contextmanager
def _interruptible(out: Path) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        typer.echo(f"stopped; run the same command again to go on with {out}", err=True)
        raise typer.Exit(130) from None


@contextmanager
def _bar(title: str, total: int, *, quiet: bool) -> Iterator[Callable[..., None]]:
    """A progress bar on standard error; what it yields takes steps to advance and, later, a new total."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task(title, total=total or None)

        def advance(steps: int, new_total: int | None = None) -> None:
            progress.update(task, advance=steps, total=new_total or total or None)

        yield advance
