"""A comparison's report as tables of text, the same for HTML and Markdown. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from tools.energy.alerts import alerts
from tools.energy.analysis import (
    Result,
    Way,
    agreements,
    boards,
    drift,
    gross_of,
    phase,
    phase_net_j,
    plugs,
    ways,
    whole_j,
)
from tools.energy.block_record import Block, Figure
from tools.energy.figures import idle_w
from tools.energy.spec import CompareSpec, shortfalls
from tools.experiment.report.figures import plain_number
from tools.experiment.report.stats import Interval, interval
from tools.report.words import DASH, digits, duration, joules, task_label

REPLAY = "replay: not this machine's energy"


@dataclass(frozen=True, slots=True)
class Table:
    """One table: the first column names the row. `note` says how to read it."""

    title: str
    note: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Report:
    """Everything a page says. `label` is over every table of a replay, `short` where the protocol was not kept."""

    name: str
    headline: str
    label: str
    short: tuple[str, ...]
    alerts: tuple[str, ...]
    facts: tuple[tuple[str, str], ...]
    tables: tuple[Table, ...]


def report_of(spec: CompareSpec, result: Result) -> Report:
    """The report of what has ended so far."""
    replayed = spec.local is not None or any(block.replayed for block in result.blocks)
    label = REPLAY if replayed else ""
    found = [_schemes(result), _pairs(result), _phases(result), _devices(result), _idle(result)]
    if result.has_plugs:
        found.append(_agreement(result))
    found += [_losses(result), _blocks(result)]
    titled = [
        Table(f"{table.title} ({label})" if label else table.title, table.note, table.head, table.rows)
        for table in found
        if table.rows
    ]
    short = (*shortfalls(spec), *_fewer(spec, result))
    return Report(
        spec.name, headline(result), label, short, tuple(alerts(spec, result)), _facts(spec, result), tuple(titled)
    )


def headline(result: Result) -> str:
    """What came out, in a sentence: the first scheme against each other, by the best way there is."""
    way = ways(result)[0]
    base = result.schemes[0]
    parts = []
    for other in result.schemes[1:]:
        found = None if _is_withheld(result, way) else result.ratio(other, base, way)
        if found is None:
            parts.append(f"{other} cannot be compared with {base}")
            continue
        said = f"{other} took {found.mean:.2f}"
        said += f" [{found.low:.2f}, {found.high:.2f}]" if found.low is not None and found.high is not None else ""
        parts.append(f"{said} of {base}'s joules ({way.title})")
    return "; ".join(parts) + "."


def _fewer(spec: CompareSpec, result: Result) -> list[str]:
    return [
        f"{scheme}: {len(result.done(scheme))} of {spec.protocol.repeats} repeats count"
        for scheme in result.schemes
        if len(result.done(scheme)) < spec.protocol.repeats
    ]


def _facts(spec: CompareSpec, result: Result) -> tuple[tuple[str, str], ...]:
    protocol = spec.protocol
    first = result.blocks[0] if result.blocks else None
    where = f"fleet {spec.fleet.name}" if spec.fleet else "a fleet on this machine, on replayed traces"
    cool = "none" if protocol.cool_to_c is None else f"to {protocol.cool_to_c:g} °C"
    modes = sorted(
        {
            f"{device.agent}: {device.boards[0].power_mode}"
            for block in result.blocks
            for device in block.devices
            if device.boards and device.boards[0].power_mode
        }
    )
    target = DASH if result.target is None else f"{result.target:.4f} ({result.target_said})"
    return (
        ("where", where),
        ("repeats", f"{protocol.repeats}, order by Williams' design, seed {protocol.seed}"),
        ("each block", f"cool-down {cool}, {protocol.warmup_rounds} warm-up rounds, "
         f"idle {protocol.idle_s:g} s before and after, {protocol.settle_s:g} s of peace before each"),
        ("power modes", ", ".join(modes) or "no board tells one"),
        ("target loss", target),
        ("intervals", "95 %, Student's t over repeats; differences are paired by repeat"),
        ("versions", ", ".join(f"{name} {is_}" for name, is_ in first.versions.items()) if first else DASH),
    )  # fmt: skip


def _is_withheld(result: Result, way: Way) -> bool:
    return bool(result.withheld) and way.key.startswith("boards")


def amount(found: Interval | None, unit: str, sign: bool = False) -> str:
    """Mean and limits in the way's own unit, e.g. `1240 [1180, 1300] J`."""
    if found is None:
        return DASH
    decimals = _decimals([found.mean, found.low or 0.0, found.high or 0.0], unit)
    said = plain_number(found.mean, decimals, sign)
    if found.low is not None and found.high is not None:
        said += f" [{plain_number(found.low, decimals, sign)}, {plain_number(found.high, decimals, sign)}]"
    return f"{said} {unit}".strip()


def _decimals(values: Sequence[float], unit: str) -> int:
    if not unit:
        return 4
    largest = max(abs(value) for value in values)
    return 0 if largest >= 1000 else 1 if largest >= 100 else 2 if largest >= 1 else 4


def _share(found: Interval | None) -> str:
    if found is None:
        return DASH
    said = f"{found.mean:.3f}"
    return f"{said} [{found.low:.3f}, {found.high:.3f}]" if found.low is not None else said


def _schemes(result: Result) -> Table:
    every = ways(result)
    rows = []
    for scheme in result.schemes:
        cells = [DASH if _is_withheld(result, way) else amount(result.mean(scheme, way), way.unit) for way in every]
        rows.append((scheme, str(len(result.done(scheme))), *cells, _meter_error(result.done(scheme))))
    note = (
        "Mean over repeats with its 95 % interval. Gross: everything drawn while the job ran; net: less the idle watts "
        "of the same block times the same time. Boards: what their own meters saw from each board's first order to its "
        "last report. "
        + (f"The boards' joules are withheld: {result.withheld}. " if result.withheld else "")
        + (
            f"The boards are unlike, so their sum is of no one scope or kind: {result.caveat}. "
            if result.caveat
            else ""
        )
        + "Meter: how far off the gross figure may be in all repeats alike, which no repetition shows."
    )
    return Table("Schemes", note, ("scheme", "repeats", *(way.title for way in every), "meter"), tuple(rows))


def _meter_error(blocks: Sequence[Block]) -> str:
    found = []
    for name, figures in (("plug", [plugs(b) for b in blocks if b.plugs]), ("boards", [boards(b) for b in blocks])):
        known = [f for f in figures if f.energy_j and f.uncertainty_j is not None]
        if known and len(known) == len(figures):
            share = math.fsum(f.uncertainty_j / f.energy_j for f in known if f.uncertainty_j and f.energy_j)
            found.append(f"{name} ±{share / len(known) * 100:.1f} %")
    return ", ".join(found) or "not known"


def _pairs(result: Result) -> Table:
    rows = []
    for second, first in combinations(result.schemes, 2):
        for way in ways(result):
            if _is_withheld(result, way):
                continue
            difference = result.difference(first, second, way)
            if difference is None:
                continue
            ratio = result.ratio(first, second, way) if way.unit else None
            verdict = _verdict(difference)
            row = (f"{first} − {second}", way.title, amount(difference, way.unit, sign=True), _share(ratio))
            rows.append((*row, str(difference.n), verdict))
    note = "Differences within each repeat, then their mean and 95 % interval; below zero, the first takes less."
    head = ("pair", "by", "difference", "ratio", "pairs", "")
    return Table("Paired differences", note, head, tuple(rows))


def _verdict(found: Interval) -> str:
    if found.low is None or found.high is None:
        return "one pair: no interval"
    return "less" if found.high < 0 else "more" if found.low > 0 else "not separated"


def _phases(result: Result) -> Table:
    rows = []
    for scheme in result.schemes if not result.withheld else ():
        for name in result.phases():
            gross = Way(name, name, "J", lambda block, name=name: whole_j(phase(block, name)))  # type: ignore[misc]
            net = Way(name, name, "J", lambda block, name=name: phase_net_j(block, name))  # type: ignore[misc]
            time = [f.duration_s for b in result.done(scheme) if (f := phase(b, name)) is not None]
            if time:
                seconds = amount(interval(time), "s")
                rows.append((scheme, name, amount(result.mean(scheme, gross), "J"),
                             amount(result.mean(scheme, net), "J"), seconds))  # fmt: skip
    note = (
        "Over all boards, by their own meters. Seconds are device-seconds: two boards that wait 5 s wait 10 s. "
        "Waiting is real energy: a board that waits for the slowest draws its idle watts."
    )
    return Table("Energy by phase", note, ("scheme", "phase", "gross", "net", "device time"), tuple(rows))


def _devices(result: Result) -> Table:
    rows = []
    for block in result.blocks:
        for device in block.devices:
            figure = gross_of(device)
            if figure is not None:
                rows.append((f"{block.scheme}, repeat {block.repeat + 1}", device.agent, *_trust(figure)))
        for plug in block.plugs:
            rows.append((f"{block.scheme}, repeat {block.repeat + 1}", f"plug {plug.name}", *_trust(plug.whole)))
    note = "Each figure with what it is worth. State, scope and coverage are those the meter gave."
    head = ("block", "of", "gross", "state", "scope", "source", "coverage", "±", "samples", "longest gap", "flags")
    return Table("Every figure and how far to trust it", note, head, tuple(rows))


def _trust(figure: Figure) -> tuple[str, ...]:
    return (
        joules(figure.energy_j) if figure.energy_j is not None else f"{DASH} {figure.reason}",
        figure.state,
        figure.scope,
        figure.source,
        DASH if figure.coverage is None else f"{figure.coverage * 100:.1f} %",
        DASH if figure.uncertainty_j is None else joules(figure.uncertainty_j),
        str(figure.n_samples),
        DASH if figure.max_gap_s is None else f"{digits(figure.max_gap_s)} s",
        ", ".join(figure.flags) or DASH,
    )


def _idle(result: Result) -> Table:
    rows = []
    for block in result.blocks:
        named = [(device.agent, device.idle_before, device.idle_after) for device in block.devices]
        named += [(f"plug {plug.name}", plug.idle_before, plug.idle_after) for plug in block.plugs]
        for name, before, after in named:
            moved = drift(before, after)
            rows.append((f"{block.scheme}, repeat {block.repeat + 1}", name, _watts(before), _watts(after),
                         DASH if moved is None else f"{moved * 100:+.1f} %".replace("-", "−"),
                         _w(idle_w(before, after))))  # fmt: skip
    note = "Mean watts while nothing was to be done, on both sides of each block; net joules use their mean."
    return Table("Idle baselines", note, ("block", "of", "before", "after", "drift", "used"), tuple(rows))


def _watts(figure: Figure) -> str:
    power_w = figure.power_w
    return f"{DASH} {figure.reason}" if power_w is None else f"{digits(power_w)} W ({figure.n_samples} samples)"


def _w(value: float | None) -> str:
    return DASH if value is None else f"{digits(value)} W"


def _agreement(result: Result) -> Table:
    found = agreements(result.blocks)
    rows = []
    for scheme in result.schemes:
        for plug in dict.fromkeys(entry.plug for entry in found):
            mine = [entry for entry in found if entry.scheme == scheme and entry.plug == plug]
            if mine:
                ratio = interval([entry.ratio for entry in mine])
                more = interval([entry.plug_j - entry.boards_j for entry in mine])
                filled = math.fsum(e.filled_j for e in mine) / math.fsum(e.boards_j for e in mine)
                known = [entry.within for entry in mine if entry.within is not None]
                meet = f"{sum(known)} of {len(known)}" if known else DASH
                rows.append((scheme, plug, _share(ratio), amount(more, "J", sign=True), f"{filled * 100:.0f} %", meet))
    note = (
        "Joules at the plug for each joule of the boards, over the same time. Above 1 is what a plug sees and a "
        "board's meter does not: the supply's loss, and whatever is outside its scope. What matters for a comparison "
        "is that the ratio is the same for all schemes. Filled: the share of the boards' side that stands for time in "
        "which a board had no work, from its idle watts. Meet: blocks in which both are within what both may be off by."
    )
    head = ("scheme", "plug", "plug / boards", "plug − boards", "filled", "meet")
    return Table("Plug beside boards", note, head, tuple(rows))


def _losses(result: Result) -> Table:
    tasks = list(dict.fromkeys(task for block in result.blocks for task in block.losses))
    rows = []
    for scheme in result.schemes:
        done = result.done(scheme)
        cells = [amount(interval([b.losses[task] for b in done if task in b.losses]), "") for task in tasks]
        if done:
            rows.append((scheme, *cells))
    note = "Held-out losses of the deployed models, mean over repeats. Fewer joules for a worse model are none saved."
    return Table("Quality reached", note, ("scheme", *(task_label(task) for task in tasks)), tuple(rows))


def _blocks(result: Result) -> Table:
    rows = []
    for block in result.blocks:
        groups = " | ".join("+".join(task_label(task) for task in group) for group in block.groups)
        hot = [b.temperature_c for d in block.devices for b in d.boards if b.temperature_c is not None]
        rows.append((f"{block.repeat + 1}.{block.position + 1}", block.scheme, block.state, str(block.seed),
                     duration(block.wall_s), groups or DASH,
                     f"{min(hot):.0f} to {max(hot):.0f} °C" if hot else DASH,
                     "; ".join(filter(None, (block.reason, *block.notes))) or DASH))  # fmt: skip
    note = "In the order they ran (repeat and place in it)."
    head = ("block", "scheme", "state", "seed", "time", "groups", "temperature", "notes")
    return Table("Blocks", note, head, tuple(rows))
