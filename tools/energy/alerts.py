"""What a reader must know before any figure: what does not count, and what is less than it looks. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from tools.energy.analysis import IDLE_DRIFT, LEAST_COVERAGE, Result, drift, gross_of
from tools.energy.block_record import Block, Figure
from tools.energy.spec import LEAST_PERIODS, CompareSpec

#: Flags that belong to a replay itself; its label says more.
_OWN_FLAGS = ("replay", "replay_looped")


def alerts(spec: CompareSpec, result: Result) -> list[str]:
    """A line each, in the order of the blocks."""
    return [line for block in result.blocks for line in _of_block(spec, block)]


def _of_block(spec: CompareSpec, block: Block) -> Iterator[str]:
    name = f"{block.scheme}, repeat {block.repeat + 1}"
    if block.state != "done":
        yield f"{name} does not count ({block.state}): {block.reason}"
    yield from (f"{name}: {note}" for note in block.notes)
    for device in block.devices:
        who = f"{name}, {device.agent}"
        figure = gross_of(device)
        if figure is not None:
            yield from _of_figure(who, figure)
        throttled = sorted({flag for board in device.boards for flag in board.throttled})
        if throttled:
            yield f"{who} was slowed down: {', '.join(throttled)}"
        if any(board.undervoltage for board in device.boards):
            yield f"{who} had too low a supply voltage; another cable or supply mends it"
        yield from _of_idle(who, device.idle_before, device.idle_after)
    for plug in block.plugs:
        who = f"{name}, plug {plug.name}"
        yield from _of_figure(who, plug.whole)
        yield from _of_idle(who, plug.idle_before, plug.idle_after)
        if plug.also:
            yield f"{who} also feeds {plug.also}: that is in its gross joules"


def _of_figure(who: str, figure: Figure) -> Iterator[str]:
    if figure.state == "missing":
        yield f"{who}: no joules ({figure.reason or 'no reason was given'})"
        return
    if figure.state == "estimated":
        yield f"{who}: its joules are an estimate, not a measurement"
    if figure.coverage is not None and figure.coverage < LEAST_COVERAGE:
        yield f"{who}: its samples cover {figure.coverage * 100:.1f} % of the time, so it is in no mean"
    if figure.state != "estimated" and figure.n_samples < LEAST_PERIODS:
        yield f"{who}: {figure.n_samples} samples, fewer than the {LEAST_PERIODS} that the protocol asks for"
    flags = [flag for flag in figure.flags if flag not in _OWN_FLAGS]
    if flags:
        yield f"{who}: flagged {', '.join(flags)}"


def _of_idle(who: str, before: Figure, after: Figure) -> Iterator[str]:
    for side, figure in (("before", before), ("after", after)):
        if figure.energy_j is None:
            yield f"{who}: no idle baseline {side} ({figure.reason})"
    moved = drift(before, after)
    if moved is not None and abs(moved) > IDLE_DRIFT:
        yield f"{who}: idle watts moved by {moved * 100:+.0f} % from before to after; its net joules are that unsure"
