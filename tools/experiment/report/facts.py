"""What the head of the report says: the outcome in a sentence, and what was run, on what, by which software."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timezone

from markupsafe import Markup

from tools.experiment.report.costs import COUNTED, ratio_to_one_by_one
from tools.experiment.report.document import Document, Section
from tools.experiment.report.figures import half, mean
from tools.experiment.report.rows import short
from tools.experiment.report.stats import Interval, paired
from tools.experiment.run_record import DataUsed, Run
from tools.report import words

#: Digits of a commit; what follows them says that files had changed since.
_COMMIT = 40


def headline(document: Document) -> Markup:
    """MAS against one-by-one in loss and cost: MAS-3, else the most splits that ran."""
    section = document.sections[0]
    counted = [row for row in section.bench.rows_of("mas") if row.losses]
    row = next((row for row in counted if row.splits == 3), counted[-1] if counted else None)
    base = section.bench.row("one-by-one")
    found = None if row is None or base is None else paired(row.losses, base.losses)
    if row is None or base is None or found is None:
        return Markup("MAS and one-by-one have not both ended with one seed, so nothing is compared yet.")
    loss = Markup("{}’s total loss {} one-by-one’s").format(row.label, _compared(found))
    cost = ratio_to_one_by_one(section.bench, row, COUNTED)
    if cost is None:
        return loss + Markup(".")
    return loss + Markup(", at <b>{}</b> of its operations.").format(mean(cost, 2))


def _compared(found: Interval) -> Markup:
    """How far a loss lies from another, or that the seeds cannot tell."""
    side = "below" if found.mean < 0 else "above"
    spread = half(found) or ("(one seed)" if found.n == 1 else "")
    far = Markup("<b>{}</b> {} {}").format(words.loss(abs(found.mean)), spread, side)
    if found.low is not None and found.high is not None and found.low <= 0 <= found.high:
        return Markup("cannot be told apart by these seeds ({}) from").format(far)
    return Markup("is {}").format(far)


def facts(document: Document) -> list[tuple[str, str]]:
    """Name and value of everything a reader must know to judge or repeat the runs."""
    runs, section = document.runs, document.sections[0]
    return [
        ("runs", _runs(document)),
        ("tasks", ", ".join(f"{words.task_label(task)} ({short([task])})" for task in section.bench.tasks)),
        ("seeds", ", ".join(map(str, sorted({run.seed for run in runs})))),
        ("data", _each(runs, lambda run: _data(run.data))),
        ("held out", _each(runs, lambda run: _held_out(run.data))),
        ("settings", _settings(section)),
        *([("how they were chosen", document.chosen)] if document.chosen else []),
        ("network", _each(runs, lambda run: f"{run.spec.network}, pictures of {run.spec.size} x {run.spec.size}")),
        ("device", _each(runs, lambda run: f"{run.device}, {run.precision}, {run.mode}")),
        ("machine", _each(runs, lambda run: run.machine)),
        ("versions", _versions(runs)),
        ("energy", _each([run for run in runs if run.state == "done"], _energy) or words.DASH),
        ("run", _span(runs)),
        *([("FLOPs", "; ".join(document.notes))] if document.notes else []),
    ]


def _runs(document: Document) -> str:
    states = [run.state for run in document.runs]
    stopped = [f"{states.count(state)} {state}" for state in ("diverged", "failed") if state in states]
    return f"{states.count('done')} ended well of {len(states)}" + (f" ({', '.join(stopped)})" if stopped else "")


def _each(runs: Iterable[Run], say: Callable[[Run], str]) -> str:
    """What all runs say, or everything different that they say."""
    return "; ".join(dict.fromkeys(say(run) for run in runs))


def _versions(runs: Iterable[Run]) -> str:
    """Each package with every version that some run had; commits by their first ten digits."""
    found: dict[str, dict[str, None]] = {}
    for run in runs:
        for name, value in run.versions.items():
            shown = value if len(value) < _COMMIT else value[:10] + value[_COMMIT:]
            found.setdefault(name, {})[shown] = None
    return ", ".join(f"{name} {' / '.join(values)}" for name, values in found.items())


def _data(data: DataUsed) -> str:
    manifest = f", manifest sha256 {data.manifest_sha256[:16]}…" if data.manifest_sha256 else ", without a manifest"
    return f"{data.root}: {len(data.clients)} clients, {data.train_images} training pictures{manifest}"


def _held_out(data: DataUsed) -> str:
    """Whether test buildings are really nobody's training buildings, from the record itself."""
    train = {building for client in data.clients for building in client.train_buildings}
    test = {building for client in data.clients for building in client.test_buildings}
    shared = sorted(train & test)
    said = f"{data.test_images} test pictures of {len(test)} buildings"
    if shared:
        return f"{said}, BUT trained on too: {', '.join(shared)}"
    return f"{said}, none of which any client trained on ({len(train)} training buildings)"


def _settings(section: Section) -> str:
    spec = section.bench.base
    return (
        f"R = {spec['rounds']} rounds, R0 = {spec['merge_rounds']} merged, K = {spec['clients_per_round']} clients a "
        f"round, E = {spec['train.epochs']} local epochs, batches of {spec['train.batch_size']}, learning rate "
        f"{spec['train.lr']:g} x (1 - r/R)^{spec['lr_power']:g}, momentum {spec['train.momentum']:g}, weight decay "
        f"{spec['train.weight_decay']:g}, lookahead every {spec['probe_every']} batches of the first "
        f"{spec['affinity_rounds']} rounds"
    )


def _energy(run: Run) -> str:
    energy = run.energy
    known = ", ".join(part for part in (words.state_word(energy.state), energy.scope) if part)
    doubts = "; ".join(part for part in (energy.reason, *energy.flags) if part)
    return f"{known}: {energy.source or 'no source named'}" + (f" ({doubts})" if doubts else "")


def _span(runs: Iterable[Run]) -> str:
    every = list(runs)
    first, last = min(run.started_at for run in every), max(run.started_at + run.wall_s for run in every)
    days = [datetime.fromtimestamp(at, timezone.utc).strftime("%Y-%m-%d %H:%M UTC") for at in (first, last)]
    return f"{days[0]} to {days[1]}, {words.duration(sum(run.wall_s for run in every))} of training in all"
