"""The protocol's questions on cost and loss (Q1, Q2, Q5, Q7, Q8). A question's docstring is the rule the page shows.

Every rule is a pure function of a bench. Differences are paired by seed, intervals are 95 % by Student's t.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise

from tools.experiment.report.claims import Answer, Claim, Outcome, below, not_negative, plain, positive
from tools.experiment.report.costs import (
    COUNTED,
    CPU_TIME,
    CURRENCIES,
    JOULES,
    Currency,
    counted_flops,
    prediction_errors,
    ratio_to_one_by_one,
)
from tools.experiment.report.rows import Bench, Row, final_groups
from tools.experiment.report.stats import Interval, interval, paired, paired_ratio, spearman

#: Largest error of a predicted ratio that still counts as predicted.
PREDICTED_WITHIN = 0.10
#: From this rank correlation on another currency ranks the rows as FLOPs do.
SAME_ORDER = 0.9


def rule_of(function: Callable[[Bench], Answer]) -> str:
    """A rule's text for the page: its docstring on one line."""
    return " ".join((function.__doc__ or "").split())


def cost(bench: Bench) -> Answer:
    """Cost is counted FLOPs of training, lookahead and GradNorm's gradients. all-in-one < MAS-2 < MAS-3 < MAS-4 <
    one-by-one < TAG < HOA: each step holds when the ratio of its two costs, paired by seed, lies above 1 with its whole
    interval (of TAG and HOA the dearest row of the cheaper side against the cheapest of the dearer). Predicted before
    measured, twice: every row's predicted ratio to one-by-one is within 10 % of the counted one, which is little more
    than arithmetic, and of the ratio of CPU times on one machine and set-up, which can fail. Each holds when the whole
    interval of the error's size is inside for every row, and is refuted when it is outside for any; the row whose
    interval reaches furthest is shown. Shown beside it, not counted: whether joules rank the rows as FLOPs do (Spearman
    0.9 or more).
    """
    stages = [(name, [row for row in rows if row is not None]) for name, rows in _chain(bench)]
    claims = []
    for (cheap, low), (dear, high) in pairwise(stages):
        ratio = paired_ratio(_extreme(high, min), _extreme(low, max))
        shifted = None if ratio is None else _less_one(ratio)
        claims.append(Claim(f"{cheap} < {dear}", positive(shifted), ratio, "ratio", against=1.0))
    claims += [_predicted(bench, COUNTED, "counted ones"), _predicted(bench, CPU_TIME, "measured ones of CPU time")]
    claims.append(_same_order(bench))
    figures = {
        row.name: {
            **{c.name: plain(ratio_to_one_by_one(bench, row, c)) for c in CURRENCIES},
            "prediction_error": plain(interval(list(prediction_errors(bench, row).values()))),
            "prediction_error_cpu_s": plain(interval(list(prediction_errors(bench, row, CPU_TIME).values()))),
        }
        for row in bench.rows
    }
    return Answer("Q1", "Cost", rule_of(cost), tuple(claims), figures={"ratio_to_one_by_one": figures})


def _chain(bench: Bench) -> list[tuple[str, list[Row | None]]]:
    mas: list[tuple[str, list[Row | None]]] = [(f"MAS-{k}", [bench.row("mas", k)]) for k in (2, 3, 4)]
    start: list[tuple[str, list[Row | None]]] = [("all-in-one", [bench.row("all-in-one")])]
    return [
        *start,
        *mas,
        ("one-by-one", [bench.row("one-by-one")]),
        ("TAG", [*bench.rows_of("tag")]),
        ("HOA", [*bench.rows_of("hoa")]),
    ]


def _extreme(rows: Sequence[Row], pick: Callable[[Sequence[float]], float]) -> dict[int, float]:
    costs = [row.by_seed(counted_flops) for row in rows]
    shared = set.intersection(*(set(found) for found in costs)) if costs else set()
    return {seed: pick([found[seed] for found in costs]) for seed in shared}


def _less_one(ratio: Interval) -> Interval:
    low, high = (None if end is None else end - 1 for end in (ratio.low, ratio.high))
    return Interval(ratio.n, ratio.mean - 1, low, high)


def _predicted(bench: Bench, measured: Currency, name: str) -> Claim:
    """Whether predicted ratios to one-by-one came true in a currency, for every row."""
    errors = {r.label: prediction_errors(bench, r, measured) for r in bench.rows if r.scheme != "one-by-one"}
    sizes = {label: interval([abs(error) for error in found.values()]) for label, found in errors.items()}
    known = {label: size for label, size in sizes.items() if size is not None}
    text = f"predicted ratios within 10 % of the {name}"
    if not known:
        return Claim(text, "missing", None, "share", against=PREDICTED_WITHIN, note="no row has both")
    outcomes = {label: below(size, PREDICTED_WITHIN) for label, size in known.items()}
    worst = max(known, key=lambda label: _upper(known[label]))
    out = [label for label, outcome in outcomes.items() if outcome == "no"]
    note = f"of {len(known)} rows, {worst} is furthest off" + (f"; outside: {', '.join(out)}" if out else "")
    return Claim(text, _of_all(list(outcomes.values())), known[worst], "share", against=PREDICTED_WITHIN, note=note)


def _upper(size: Interval) -> float:
    return size.mean if size.high is None else size.high


def _of_all(outcomes: Sequence[Outcome]) -> Outcome:
    """What is said of all: refuted by one, held only by every one."""
    order: tuple[Outcome, ...] = ("no", "unclear", "missing")
    return next((outcome for outcome in order if outcome in outcomes), "yes")


def _same_order(bench: Bench) -> Claim:
    pairs = [
        (flops.mean, energy.mean)
        for row in bench.rows
        if (flops := ratio_to_one_by_one(bench, row, COUNTED)) is not None
        and (energy := ratio_to_one_by_one(bench, row, JOULES)) is not None
    ]
    found = spearman([flops for flops, _ in pairs], [energy for _, energy in pairs])
    text = "joules rank the rows as FLOPs do"
    if found is None:
        return Claim(text, "missing", None, "index", deciding=False)
    return Claim(text, "yes" if found >= SAME_ORDER else "no", interval([found]), "index", False, SAME_ORDER)


def difference(text: str, worse: Row | None, better: Row | None, deciding: bool = True) -> Claim:
    """The claim that `worse` has a higher total loss than `better` with the same seed."""
    found = None if worse is None or better is None else paired(worse.losses, better.losses)
    return Claim(text, positive(found), found, deciding=deciding)


def loss(bench: Bench) -> Answer:
    """Total held-out loss: all-in-one > one-by-one > MAS-3 hold when the paired difference lies above zero with its
    whole interval; MAS-3 >= MAS-4 when it is not below zero on average, and is refuted when its whole interval is.
    There is conflict where all-in-one is worse than one-by-one, or where a pair of tasks has negative affinity.
    """
    alone, merged = bench.row("one-by-one"), bench.row("all-in-one")
    three, four, two = (bench.row("mas", k) for k in (3, 4, 2))
    last = difference("MAS-3 ≥ MAS-4", three, four)
    claims = (
        difference("all-in-one > one-by-one", merged, alone),
        difference("one-by-one > MAS-3", alone, three),
        Claim(last.text, not_negative(last.estimate), last.estimate),
        difference("one-by-one > MAS-2", alone, two, deciding=False),
        difference("all-in-one > MAS-2", merged, two, deciding=False),
    )
    negative = negative_affinities(bench)
    conflict = claims[0].outcome == "yes" or any(share > 0 for share in negative.values())
    figures = {"losses": losses(bench), "negative_affinity_share": {str(k): v for k, v in negative.items()}}
    shares = ", ".join(f"{share:.0%} (seed {seed})" for seed, share in negative.items())
    remark = ""
    if claims[0].outcome != "missing" or negative:
        said = f"negative affinities: {shares}" if negative else "no affinities were measured"
        remark = f"{'there is conflict between tasks' if conflict else 'no conflict between tasks shows'} ({said})"
    return Answer("Q2", "Loss", rule_of(loss), claims, remark, figures | {"conflict": conflict})


def losses(bench: Bench) -> Mapping[str, object]:
    """Mean total loss of every row as JSON."""
    return {row.name: plain(interval(list(row.losses.values()))) for row in bench.rows}


def negative_affinities(bench: Bench) -> dict[int, float]:
    """Share of ordered pairs of tasks whose mean affinity is below zero, by seed of the first MAS row that has it."""
    for row in bench.rows_of("mas"):
        found = {}
        for seed, run in row.done.items():
            measured = run.record.affinity if run.record else None
            if measured is not None:
                pairs = [v for i, line in enumerate(measured.matrix) for j, v in enumerate(line) if i != j]
                found[seed] = sum(value < 0 for value in pairs) / len(pairs) if pairs else 0.0
        if found:
            return found
    return {}


def more_splits(bench: Bench) -> Answer:
    """From MAS-2 to MAS-3 to MAS-4, paired by seed: the loss falls at each step, the counted FLOPs rise at each step,
    and the second fall is smaller than the first. Each holds when its difference lies above zero with its whole
    interval. A seed in which the affinities ask for fewer groups than allowed trains the same splits twice.
    """
    rows = {k: bench.row("mas", k) for k in (2, 3, 4)}
    claims = [difference(f"loss: MAS-{k} > MAS-{k + 1}", rows[k], rows[k + 1]) for k in (2, 3)]
    for k in (2, 3):
        less, more = rows[k], rows[k + 1]
        ratio = None if less is None or more is None else paired_ratio(_counted(more), _counted(less))
        shifted = None if ratio is None else _less_one(ratio)
        claims.append(Claim(f"cost: MAS-{k} < MAS-{k + 1}", positive(shifted), ratio, "ratio", against=1.0))
    two, three, four = (({} if row is None else row.losses) for row in rows.values())
    shared = two.keys() & three.keys() & four.keys()
    found = interval([(two[s] - three[s]) - (three[s] - four[s]) for s in sorted(shared)])
    claims.append(Claim("the first fall is the larger", positive(found), found))
    groups = {
        f"MAS-{k}": {str(seed): len(final_groups(run)) for seed, run in row.done.items()}
        for k, row in rows.items()
        if row is not None
    }
    fewer = [f"{name} seed {s}" for name, by in groups.items() for s, n in by.items() if n < int(name[-1])]
    remark = f"fewer groups than allowed were chosen in {', '.join(fewer)}" if fewer else ""
    return Answer("Q5", "More splits", rule_of(more_splits), tuple(claims), remark, {"groups": groups})


def _counted(row: Row) -> dict[int, float]:
    return row.by_seed(counted_flops)


def rivals(bench: Bench) -> Answer:
    """The gap is all-in-one minus MAS (MAS-3, else the most splits that ran). It must exist, and FedProx minus MAS and
    GradNorm minus MAS must remain above zero with their whole intervals. Shown too: the share of the gap each closes.
    """
    counted = bench.rows_of("mas")
    mas = bench.row("mas", 3) or (counted[-1] if counted else None)
    name = mas.label if mas else "MAS"
    merged = bench.row("all-in-one")
    claims = [difference(f"all-in-one > {name}", merged, mas)]
    figures: dict[str, object] = {}
    for scheme, label in (("fedprox", "FedProx"), ("gradnorm", "GradNorm")):
        row = bench.row(scheme)
        claims.append(difference(f"{label} > {name}", row, mas))
        if row is not None and mas is not None and merged is not None:
            gap, left = paired(merged.losses, mas.losses), paired(merged.losses, row.losses)
            closed = left.mean / gap.mean if gap is not None and left is not None and gap.mean > 0 else None
            figures[scheme] = {"gap": plain(gap), "closed": plain(left), "share_of_gap_closed": closed}
            if closed is not None:
                claims[-1] = replace(
                    claims[-1], note=f"{'closes' if closed >= 0 else 'widens'} the gap by {abs(closed):.0%}"
                )
    return Answer("Q8", "FedProx and GradNorm", rule_of(rivals), tuple(claims), figures=figures)


def sweeps(bench: Bench) -> Answer:
    """R0: at every number of merge rounds that was run, base included, MAS stays below all-in-one with its whole
    interval. K: with the most clients a round the loss is below that with the fewest. Differences are paired by seed.
    """
    merged = bench.row("all-in-one")
    claims: list[Claim] = []
    figures: dict[str, object] = {}
    swept = bench.variants("mas", "merge_rounds")
    base = next((r for r in bench.rows_of("mas") if not swept or r.splits == swept[0].splits), None)
    for row in sorted(
        [r for r in (base, *swept) if r is not None and swept], key=lambda r: _setting(r, "merge_rounds")
    ):
        value = _setting(row, "merge_rounds")
        claims.append(difference(f"R0 = {value}: all-in-one > MAS-{row.splits}", merged, row))
        figures[f"R0={value}"] = plain(interval(list(row.losses.values())))
    if not swept:
        claims.append(Claim("R0: all-in-one > MAS", "missing", None))
    claims.append(_clients(bench, figures))
    return Answer("Q7", "Sweeps of R0 and K", rule_of(sweeps), tuple(claims), figures=figures)


def _clients(bench: Bench, figures: dict[str, object]) -> Claim:
    swept = bench.variants("mas", "clients_per_round")
    base = next((r for r in bench.rows_of("mas") if swept and r.splits == swept[0].splits), None)
    rows = sorted([r for r in (base, *swept) if r is not None], key=lambda r: _setting(r, "clients_per_round"))
    for row in rows:
        figures[f"K={_setting(row, 'clients_per_round')}"] = plain(interval(list(row.losses.values())))
    if len(rows) < 2:
        return Claim("K: few clients > many", "missing", None)
    few, many = rows[0], rows[-1]
    k_few, k_many = (_setting(row, "clients_per_round") for row in (few, many))
    return difference(f"loss with K = {k_few} > with K = {k_many}", few, many)


def _setting(row: Row, name: str) -> int:
    return int(getattr(row.runs[0].spec, name))
